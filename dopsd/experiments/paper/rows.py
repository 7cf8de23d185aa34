"""The rows of the paper's LoRA comparison, and what each may differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dopsd.config import RunConfig, load_config
from dopsd.config.load import as_text
from dopsd.config.recipes import configs_folder
from dopsd.files import storage


@dataclass(frozen=True)
class PaperFigures:
    """What the paper (arXiv 2605.05204) gives for a row of its LoRA table; None: not given."""

    clip_s: float | None = None
    quality_s: float | None = None


@dataclass(frozen=True)
class PaperRow:
    """``name``: of its config in ``configs/paper``, its run and its model."""

    name: str
    title: str
    paper: PaperFigures
    on_adapter: bool = False


BASE_FIGURES = PaperFigures(clip_s=0.304)
ROWS = (
    PaperRow("dopsd", "D-OPSD", PaperFigures(clip_s=0.366, quality_s=3.80)),
    PaperRow("sft", "SFT", PaperFigures(clip_s=0.31, quality_s=2.42)),
    PaperRow("sft_on_adapter", "SFT on a training adapter", PaperFigures(), on_adapter=True),
)


def rows_of(adapter: str | None) -> tuple[PaperRow, ...]:
    """All, or those that need no training adapter where there is none."""
    return tuple(row for row in ROWS if adapter is not None or not row.on_adapter)


def config_of(
    row: PaperRow, concept: str, folder: str, adapter: str | None, overrides: Sequence[str]
) -> RunConfig:
    """The run config of a row; all rows share their shards. ``overrides`` are for all rows.

    Raises ConfigError as ``load_config``.
    """
    file = configs_folder() / "paper" / f"{row.name}.yaml"
    config = load_config(file, [*overrides, f"data.source={as_text(concept)}"])
    config.run.folder = storage.join(folder, "runs", row.name)
    config.data.shards = storage.join(folder, "shards")
    if row.on_adapter:
        assert adapter is not None, "the row is left out otherwise"
        config.model.merge = [adapter]
    return config
