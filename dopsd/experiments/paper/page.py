"""The page of the comparison: what was measured here, what the paper gives, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dopsd.evaluation.metrics.judge import LABELS
from dopsd.evaluation.results import Results
from dopsd.evaluation.spec import BASE
from dopsd.experiments.paper.cost import GPU_FLOPS, Cost
from dopsd.experiments.paper.rows import BASE_FIGURES, PaperFigures, PaperRow
from dopsd.intervals import Value, mean
from dopsd.shown import cell

SOURCE = "D-OPSD, arXiv 2605.05204, its LoRA comparison on Z-Image-Turbo"
_COLUMNS = {"clip_s": "CLIP-S", "dino": "DINO", "lpips": "LPIPS", **LABELS}
_NONE = ""


def markdown(
    rows: Sequence[PaperRow],
    results: Results,
    costs: Mapping[str, Cost],
    metrics: Mapping[str, str],
    adapter: str | None,
) -> str:
    """``results``: of one number of steps. ``costs`` by what they are of, ``metrics``: the model of
    each."""
    named = [(BASE, "base, not tuned", BASE_FIGURES)]
    named += [(row.name, row.title, row.paper) for row in rows]
    lines = ["# The paper's LoRA comparison", "", *_measured(named, results)]
    if results.missing:
        lines += ["", "Not measured:", "", *(f"- {cell(why)}" for why in results.missing.values())]
    if adapter is None:
        lines += ["", "SFT on a training adapter is left out: no `--adapter` was given."]
    lines += ["", "Metrics: " + ", ".join(f"{k} {cell(v)}" for k, v in metrics.items()) + "."]
    lines += ["", f"The paper's figures ({SOURCE}), on its own concepts and prompts; Quality-S is"]
    lines += ["its judge of image quality, which is not measured here:", "", *_paper(named)]
    lines += ["", f"GPU hours by arithmetic, at {GPU_FLOPS:.3g} FLOP per second and GPU (40% of an"]
    lines += ["H100's dense bf16, assumed), encoders and VAE left out:", ""]
    lines += [f"- {what}: {cost}" for what, cost in costs.items()]
    total = sum(cost.hours for cost in costs.values())
    return "\n".join([*lines, f"- all: {total:.1f} GPU hours"]) + "\n"


Named = Sequence[tuple[str, str, PaperFigures]]


def _measured(named: Named, results: Results) -> list[str]:
    columns = [name for name in _COLUMNS if name in results.columns]
    lines = ["| | " + " | ".join(_COLUMNS[name] for name in columns) + " |"]
    lines += ["|---" * (1 + len(columns)) + "|"]
    for model, title, _ in named:
        cells = [row.values for row in results.rows if row.model == model]
        values = [str(_over([c[name] for c in cells if name in c])) for name in columns]
        lines.append(f"| {title} | {' | '.join(values)} |")
    return lines


def _over(values: Sequence[Value]) -> Value | str:
    """Of several concepts: the mean, and that of the ends of their intervals."""
    if not values:
        return _NONE
    return Value(*(mean([getattr(v, end) for v in values]) for end in ("value", "low", "high")))


def _paper(named: Named) -> list[str]:
    lines = ["| | CLIP-S | Quality-S |", "|---|---|---|"]
    for _, title, figures in named:
        if figures != PaperFigures():
            values = (figures.clip_s, figures.quality_s)
            shown = [_NONE if value is None else f"{value:g}" for value in values]
            lines.append(f"| {title} | {' | '.join(shown)} |")
    return lines
