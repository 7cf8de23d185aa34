"""One undisturbed run for the tests that disturb the same one on a cluster of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from dopsd.config import dump_config
from dopsd.driver.train import train
from tests.helpers.tiny import make_config, random_image

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
    images = folder / "images"
    images.mkdir()
    for number in range(7):
        Image.fromarray(random_image(32, 32, number)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"a red cat, number {number}")
    config = make_config(
        tiny_base,
        run={"folder": str(folder / "run"), "seed": 3},
        data={"source": str(images), "pixel_area": 1024, "bucket_multiple": 8},
        lora={"rank": 4, "alpha": 8},
        method={"ema_decay": 0.9},
        encoder={"cpus": 0.5},
        rollout={"cpus": 0.5},
        teacher={"cpus": 0.5},
        # Three micro-batches a step: two learners have an uneven share of them.
        learner={"cpus": 0.5, "steps": STEPS, "global_batch": 3, "micro_batch": 1, "lr": 1e-4},
        checkpoint={"every_steps": 5},
        preview={"samples": 0},
        preflight={"mode": "off"},
    )
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    summary = train(config, lambda phase, status: None)
    assert summary.lora
    return Calm(file, Path(summary.lora))
