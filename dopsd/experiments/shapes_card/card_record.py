"""The model card of the shapes base: its rows and gates, as JSON and as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dopsd.experiments.shapes_base.save import CARD, CARD_PAGE, owned
from dopsd.intervals import Value, mean, wilson


@dataclass(frozen=True)
class Row:
    """One setting: which model drew which prompts how, and what the oracle found."""

    model: str
    prompts: str
    picture: bool
    steps: int
    guidance: float
    count: int
    values: dict[str, Value]

    @property
    def name(self) -> str:
        """A label such as ``turbo, full, 4 steps, guidance 0``."""
        beside = " + picture" if self.picture else ""
        return (
            f"{self.model}, {self.prompts}{beside}, {self.steps} steps, guidance {self.guidance:g}"
        )


@dataclass(frozen=True)
class Effect:
    """What tuning did: four-step pictures by the base (``objective`` is ``base``) or by its LoRA.

    ``asked``: prompts with ``[V]``; ``prior``: prompts about what the base knew before.
    """

    objective: str
    concept: str
    seed: int
    count: int
    asked: dict[str, Value]
    prior: dict[str, Value]


@dataclass(frozen=True)
class Gate:
    """A requirement and whether it is met."""

    name: str
    required: str
    measured: str
    met: bool


@dataclass
class Card:
    """All rows and gates of one folder of weights."""

    sha256: str
    samples: int
    seeds: tuple[int, ...]
    rows: list[Row] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def row(self, model: str, prompts: str, steps: int, picture: bool = False) -> Row | None:
        """Find a row; of two with other guidance, the guided one."""
        rows = [
            row
            for row in self.rows
            if (row.model, row.prompts, row.steps, row.picture) == (model, prompts, steps, picture)
        ]
        return max(rows, key=lambda row: row.guidance, default=None)


def describe(row: Row) -> str:
    """One line: the row's label and every value with its interval."""
    values = [f"{k} {v}" for k, v in row.values.items()]
    return f"{row.name} (n={row.count}): " + ", ".join(values)


def write(card: Card, folder: Path) -> None:
    """Write ``card.json`` and the model card ``README.md`` beside the weights.

    Raises ConfigError where files of somebody else have these names.
    """
    texts = {CARD: json.dumps(asdict(card), indent=1) + "\n", CARD_PAGE: markdown(card)}
    own = owned(folder, "--weights")
    own.check(*texts)
    own.write_all({name: text.encode() for name, text in texts.items()})


def markdown(card: Card) -> str:
    """Render the model card."""
    metrics = ("named", "all_named", "valid", "ok", "palette_error", "concept", "same_place")
    lines = [
        "# The base of the shapes world",
        "",
        "A step-distilled text-to-image model of 3.5 million weights: it draws 32x32 px pixel art",
        "in four steps without guidance. `ZImagePipeline.from_pretrained` loads this folder;",
        "`vlm/` is the Qwen3-VL whose language model is the text encoder;",
        "`transformer_undistilled/` is the base before distillation. Trained on rendered pictures",
        "alone by `dopsd shapes build-base`.",
        "",
        f"Measured by `dopsd shapes card` on {card.samples} pictures for each of the seeds "
        f"{', '.join(map(str, card.seeds))}; 95% intervals. Weights sha256 `{card.sha256}`.",
        "",
        "| setting | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for row in card.rows:
        cells = [str(row.values.get(metric, "")) for metric in metrics]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    if card.effects:
        lines += ["", *_effect_table(card.effects)]
    lines += ["", "| gate | required | measured | met |", "|---|---|---|---|"]
    for gate in card.gates:
        met = "yes" if gate.met else "NO"
        lines.append(f"| {gate.name} | {gate.required} | {gate.measured} | {met} |")
    return "\n".join(lines) + "\n"


def describe_effect(effect: Effect) -> str:
    """One line: what was tuned how, and what the oracle found."""
    return (
        f"{effect.concept}, {effect.objective}, seed {effect.seed} (n={effect.count}): concept "
        f"{effect.asked['concept'].value:.3f}, prior ok {effect.prior['ok'].value:.3f}, prior "
        f"palette error {effect.prior['palette_error'].value:.3f}"
    )


def pooled(effects: list[Effect], concept: str, objective: str) -> dict[str, Value]:
    """Pool the seeds of one concept and objective: ``concept``, ``ok`` and ``palette_error``.

    Rates get the Wilson interval of all their pictures; the palette error's is that of the seeds'
    means taken together.
    """
    chosen = [e for e in effects if (e.concept, e.objective) == (concept, objective)]
    count = sum(effect.count for effect in chosen)

    def rate(values: list[Value]) -> Value:
        hits = sum(round(v.value * e.count) for v, e in zip(values, chosen, strict=True))
        return Value(hits / count, *wilson(hits, count))

    errors = [effect.prior["palette_error"] for effect in chosen]
    return {
        "concept": rate([effect.asked["concept"] for effect in chosen]),
        "ok": rate([effect.prior["ok"] for effect in chosen]),
        "palette_error": Value(*(mean([getattr(e, f) for e in errors]) for f in _ENDS)),
    }


_ENDS = ("value", "low", "high")


def _effect_table(effects: list[Effect]) -> list[str]:
    seeds = sorted({effect.seed for effect in effects})
    lines = [
        "LoRA on turbo, 12 images beside samples of the base, plain loops of one budget; four "
        "unguided steps; seeds "
        f"{', '.join(map(str, seeds))} pooled.",
        "",
        "| tuned on | by | concept drawn for `[V]` | prior prompts: ok | prior: palette error |",
        "|---|---|---|---|---|",
    ]
    for concept, objective in dict.fromkeys((e.concept, e.objective) for e in effects):
        values = pooled(effects, concept, objective)
        cells = [str(value) for value in values.values()]
        lines.append(f"| {concept} | {objective} | " + " | ".join(cells) + " |")
    return lines
