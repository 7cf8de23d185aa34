"""A plan as lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.plan.cards import GIB, RESERVED, smallest
from dopsd.plan.plan import GB, Plan
from dopsd.plan.split import Split

MB = 1e6


def summary(plan: Plan) -> str:
    """In one line, for whoever is about to train."""
    split = plan.shipped
    memory = ", ".join(f"{group.name} {group.memory / GIB:.1f}" for group in split.groups)
    words = f"Plan: GiB of a GPU: {memory}; "
    words += f"{plan.demand.trained / 1e6:.1f} M trained of {_billions(plan)}"
    if plan.config.device == "cpu":
        return words.replace("GiB of a GPU", "GiB of tensors")
    words += "; "
    return words + f"on {plan.card.name} {_pace(split)}, bottleneck {split.bottleneck.name}"


def table(plan: Plan) -> str:
    """Everything that is planned."""
    split, traffic = plan.shipped, plan.traffic
    parts = list(dict.fromkeys(part for role in plan.roles for part in role.parts))
    rows = [["role", *parts, "total", "card", "TFLOP/image"]]
    for role in plan.roles:
        whole = plan.total(role)
        cells = [f"{role.parts[p] / GIB:.2f}" if p in role.parts else "-" for p in parts]
        rows.append(
            [
                role.name,
                *cells,
                f"{whole / GIB:.1f}",
                "-" if plan.config.device == "cpu" else _card(whole),
                _tflop(role.flops),
            ]
        )
    gated = f"; gated: {', '.join(plan.base.gated)} (accept its licence, set HF_TOKEN)"
    download = plan.base.download_gb
    lines = [
        f"{plan.config.run.name}: {plan.config.model.base}, {_billions(plan)} parameters, "
        f"{plan.demand.trained / 1e6:.1f} M trained",
        f"download of a node: {'not known' if download is None else f'{download:.1f} GB'}"
        + (gated if plan.base.gated else "; not gated"),
        f"host memory of all workers, while they load: {plan.host / GB:.0f} GB",
        "",
        f"GiB of one worker (total: on a GPU with {RESERVED / GIB:.2f} of context; card: smallest)",
        *_aligned(rows),
        "",
        f"bytes of a step of {plan.config.learner.global_batch}: contexts "
        f"{traffic.contexts / MB:.0f} MB, states {traffic.states / MB:.0f}, batches "
        f"{traffic.batches / MB:.0f}, weights published {traffic.published / MB:.0f}, read "
        f"{traffic.read / MB:.0f}",
    ]
    if plan.config.device == "cpu":
        return "\n".join(lines)
    lines += [
        "",
        f"on {plan.card.name} at {plan.efficiency:.0%} of {plan.card.tflops:g} TFLOPS, busy "
        "share of each GPU in brackets",
    ]
    rows = [["", "GPUs", "batch", "checkpointing", "s/step", "images/GPU/s", "fits", "split"]]
    rows += [_row(f"config: {split.kind}", split, plan)]
    rows += [_row(f"best {each.kind}", each, plan) for each in plan.best]
    lines += _aligned(rows)
    lines += [f"bottleneck of the config: {split.bottleneck.name}"]
    if any(each.kind == "fused" for each in plan.best):
        lines += ["best fused reads cached contexts (dopsd prepare --cache-contexts): no encoder"]
    return "\n".join(lines)


def _row(name: str, split: Split, plan: Plan) -> list[str]:
    groups = ", ".join(
        f"{group.name} {group.gpus:g} [{split.busy(group):.0%}]" for group in split.groups
    )
    return [
        name,
        f"{split.gpus:g}",
        str(split.batch),
        "on" if split.checkpointing else "off",
        f"{split.seconds:.3g}",
        f"{split.images_per_gpu_second:.3g}",
        "yes" if split.fits(plan.card) else "NO",
        groups,
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]


def _card(memory: float) -> str:
    size = smallest(memory)
    return "none" if size is None else f"{size} GB"


def _tflop(flops: float) -> str:
    return f"{flops / 1e12:.3g}"


def _billions(plan: Plan) -> str:
    weights = plan.base.transformer.weights
    return f"{weights / 1e9:.2f} B" if weights > 1e8 else f"{weights / 1e6:.2f} M"


def _pace(split: Split) -> str:
    return f"{split.seconds:.2g} s a step, {split.images_per_gpu_second:.2g} images/GPU/s"
