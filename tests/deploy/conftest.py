"""One undisturbed run for the tests that disturb the same one on a cluster of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dopsd.config import dump_config
from dopsd.driver.train import train
from tests.helpers.runs import quiet, run_config, write_images

STEPS = 180
"""Enough that a node comes and goes in the middle of them."""


@dataclass(frozen=True)
class Calm:
    """A config file, and the LoRA that it gives with one learner."""

    config: Path
    lora: Path


@pytest.fixture(scope="session")
def calm(ray_cluster, tiny_base, tmp_path_factory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    config = run_config(
        tiny_base,
        folder / "run",
        write_images(folder / "images", [(32, 32)] * 7),
        encoder={"cpus": 0.5},
        rollout={"cpus": 0.5},
        teacher={"cpus": 0.5},
        # Three micro-batches a step: two learners have an uneven share of them.
        learner={"cpus": 0.5, "steps": STEPS, "global_batch": 3, "micro_batch": 1, "lr": 1e-4},
        checkpoint={"every_steps": 5},
    )
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    summary = train(config, quiet)
    assert summary.lora
    return Calm(file, Path(summary.lora))
