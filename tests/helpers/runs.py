"""Whole trainings at toy size: their pictures, their config, what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dopsd.config import RunConfig
from dopsd.driver.summary import Summary
from dopsd.ownership.lease import Lease, claimed
from dopsd.run_folder.begin import begin_run
from dopsd.run_folder.jsonl import read_lines
from tests.helpers.tiny import make_config, random_image


def quiet(phase: str, status: dict[str, Any]) -> None:
    """Shows nothing of a run."""


def write_images(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Pictures of these (height, width) with a caption each; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(sizes):
        Image.fromarray(random_image(height, width, number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red cat, number {number}")
    return folder


def run_config(
    base: Path,
    folder: Path | str,
    images: Path | str,
    make: Callable[..., RunConfig] = make_config,
    **sections: Any,
) -> RunConfig:
    """A training of a few steps without preflight and pictures; ``sections`` are merged over it."""
    values: dict[str, Any] = {
        "run": {"folder": str(folder), "seed": 3},
        "data": {"source": str(images), "pixel_area": 1024, "bucket_multiple": 8},
        "lora": {"rank": 4, "alpha": 8},
        "encoder": {"cpus": 0.2},
        "rollout": {"cpus": 0.2},
        "teacher": {"cpus": 0.2},
        "learner": {"cpus": 0.3, "global_batch": 4, "micro_batch": 2},
        "method": {"ema_decay": 0.9},
        "preview": {"samples": 0},
        "preflight": {"mode": "off"},
    }
    for name, section in sections.items():
        merged = isinstance(section, dict)
        values[name] = values.get(name, {}) | section if merged else section
    return make(base, **values)


def metrics(run: Summary) -> list[dict[str, Any]]:
    """The lines of a run's metrics, one for each step."""
    return read_lines(f"{run.folder}/metrics.jsonl")


@contextmanager
def begun(
    config: RunConfig, resume: bool = False, tell: Callable[[list[str]], None] = lambda left: None
) -> Iterator[Lease]:
    """The run folder, claimed and begun, as ``train`` does it."""
    with claimed(config.run.folder, "run.folder") as lease:
        begin_run(config, resume, lease, tell)
        yield lease
