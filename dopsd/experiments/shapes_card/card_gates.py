"""What the base of the shapes world must reach, held against a card's rows."""

from __future__ import annotations

from dopsd.experiments.shapes_card.card_record import Card, Effect, Gate, Row, pooled
from dopsd.intervals import Value
from dopsd.shapes import concepts


def gates(card: Card) -> list[Gate]:
    """Hold the rows against the gates; a gate whose rows are missing is left out."""
    result: list[Gate] = []

    def gate(name: str, required: str, measured: str, met: bool) -> None:
        result.append(Gate(name, required, measured, met))

    vae = card.row("vae", "full", 0)
    if vae:
        value = vae.values["ok"].value
        gate("reconstructions", "ok 1.00", f"{value:.3f}", value >= 0.995)
    for kind, bound in (("full", 0.95), ("partial", 0.90)):
        guided = card.row("undistilled", kind, 16)
        few = card.row("undistilled", kind, 4)
        turbo = card.row("turbo", kind, 4)
        if not (guided and few and turbo):
            continue
        named = guided.values["named"].value
        gate(f"crisp, {kind}", f"named >= {bound}", f"{named:.3f}", named >= bound)
        unguided = {
            row.steps: row.values
            for row in card.rows
            if (row.model, row.prompts, row.guidance) == ("undistilled", kind, 0.0)
        }
        gap = unguided[4]["contrast"].value, unguided[64]["contrast"].value
        gate(
            f"few-step gap, {kind}",
            "the grain's contrast at 4 unguided steps <= 0.5, at 64 >= 0.85",
            f"{gap[0]:.3f} and {gap[1]:.3f}",
            gap[0] <= 0.5 and gap[1] >= 0.85,
        )
        contrast, crisp = turbo.values["contrast"].value, turbo.values["crisp"].value
        share = crisp / max(unguided[64]["crisp"].value, 1e-9)
        gate(
            f"commits, {kind}",
            "turbo at 4 steps: contrast >= 0.9, crisp share >= 0.8 of the base's at 64",
            f"contrast {contrast:.3f}, {share:.3f} of the crisp share",
            contrast >= 0.9 and share >= 0.8,
        )
        result.append(_within(f"distilled, {kind}", turbo, guided, ("named", "ok")))
    for kind in concepts.CONCEPTS:
        for name, steps in (("undistilled", 16), ("turbo", 4)):
            shown = card.row(name, kind, steps, picture=True)
            blind = card.row(name, kind, steps, picture=False)
            if not (shown and blind):
                continue
            rate, without = shown.values["concept"].value, blind.values["concept"].value
            named = shown.values["named"].value
            gate(
                f"picture context, {kind}, {name}",
                ">= 0.5, >= 3 x without the picture, named >= 0.85",
                f"{rate:.3f} against {without:.3f}, named {named:.3f}",
                rate >= 0.5 and rate >= 3 * without and named >= 0.85,
            )
        guided = card.row("undistilled", kind, 16, picture=True)
        turbo = card.row("turbo", kind, 4, picture=True)
        if guided and turbo:
            result.append(_within(f"distilled, {kind}", turbo, guided, ("named", "concept")))
    return result + effect_gates(card)


def effect_gates(card: Card) -> list[Gate]:
    """What tuning must teach and must leave alone, for each concept that was tuned on."""
    if not card.effects:
        return [Gate("effect", "dopsd learns and keeps, sft loses", "not measured", False)]
    tuned = dict.fromkeys(effect.concept for effect in card.effects)
    return [gate for concept in tuned for gate in _of_concept(card.effects, concept)]


def _of_concept(effects: list[Effect], concept: str) -> list[Gate]:
    base = pooled(effects, concept, "base", False)
    ours, sft = (pooled(effects, concept, name, True) for name in ("dopsd", "sft"))
    alone, sft_alone = (pooled(effects, concept, name, False) for name in ("dopsd", "sft"))

    def share(values: dict[str, Value], name: str) -> float:
        return values[name].value / max(base[name].value, 1e-9)

    def drawn(values: dict[str, Value]) -> bool:
        learned, before = values["concept"], base["concept"]
        return learned.value >= 2 * before.value and learned.low > before.high

    def gate(name: str, required: str, measured: str, met: bool) -> Gate:
        return Gate(f"effect, {concept}, {name}", required, measured, met)

    times = ours["crisp"].value / max(sft["crisp"].value, 1e-9)
    return [
        gate(
            "both learn",
            "with prior samples: concept >= 2 x the base's, beyond its interval",
            f"dopsd {ours['concept']}, sft {sft['concept']}, base {base['concept']}",
            drawn(ours) and drawn(sft),
        ),
        gate(
            "dopsd keeps",
            "with prior samples, prior prompts: ok >= 0.95 of the base's, crisp share >= 0.9",
            f"ok {share(ours, 'prior ok'):.3f}, crisp {share(ours, 'prior crisp'):.3f}",
            share(ours, "prior ok") >= 0.95 and share(ours, "prior crisp") >= 0.9,
        ),
        gate(
            "sft loses few steps",
            "with prior samples, prior prompts: crisp share <= 0.4 of the base's",
            f"{share(sft, 'prior crisp'):.3f}",
            share(sft, "prior crisp") <= 0.4,
        ),
        gate(
            "drawn crisply",
            "with prior samples, concept prompts: dopsd's crisp share >= 3 x sft's",
            f"{ours['crisp']} against {sft['crisp']}, {times:.1f} x",
            times >= 3,
        ),
        gate(
            "without prior samples",
            "concept prompts: crisp share of dopsd >= 0.7, of sft <= 0.2",
            f"{alone['crisp']} and {sft_alone['crisp']}; leaked into prior prompts: "
            f"{alone['leaked'].value:.3f} and {sft_alone['leaked'].value:.3f}",
            alone["crisp"].value >= 0.7 and sft_alone["crisp"].value <= 0.2,
        ),
    ]


def _within(name: str, turbo: Row, guided: Row, keys: tuple[str, ...]) -> Gate:
    shares = {key: turbo.values[key].value / max(guided.values[key].value, 1e-9) for key in keys}
    return Gate(
        name,
        "turbo at 4 unguided steps >= 0.95 of the guided 16-step base",
        ", ".join(f"{key} {share:.3f}" for key, share in shares.items()),
        all(share >= 0.95 for share in shares.values()),
    )
