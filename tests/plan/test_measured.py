"""Planned activations of tiny models against what PyTorch's allocator hands out when they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dopsd.config import load_config
from dopsd.models import FAMILIES
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.lora.factors import Factors
from dopsd.models.lora.layers import STUDENT
from dopsd.models.trained import TrainableParameters
from dopsd.plan.bases import base_of
from dopsd.plan.velocity import Adapter, Shape, activations
from dopsd.records import Context

ROWS, SIDE, TEXT = 2, 512, 64


def measured(call: Any, file: Path) -> int:
    """Bytes that are allocated at most during ``call``, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]) for e in events if e.get("name") == "[memory]")
    first = memory[0][1]
    before = first["Total Allocated"] - first["Bytes"]
    return int(max(args["Total Allocated"] for _, args in memory) - before)


@pytest.mark.parametrize(
    ("learns", "checkpointing"), [(False, 0), (True, 0), (True, 1), (True, 2), (True, 3)]
)
def test_the_tiny_world(learns: bool, checkpointing: int, tmp_path: Path) -> None:
    config = load_config("shapes")
    family = FAMILIES["z_image"](config.model.base)
    model: Any = family.load_transformer(torch.float32, "cpu")
    TrainableParameters(config, family).prepare(model, (STUDENT,))
    checkpoint_every(model, checkpointing)
    channels, height, width = family.latent_shape(64, 64)
    latents, sigma = torch.randn(ROWS, channels, height, width), torch.full((ROWS,), 0.5)
    context = Context(
        {"embeds": torch.randn(ROWS, TEXT, 128), "lengths": torch.full((ROWS,), TEXT)}
    )

    def call() -> None:
        with torch.set_grad_enabled(learns):
            velocity = family.velocity(model, latents, sigma, context)
            if learns:
                ((velocity - latents) ** 2).mean().backward()

    peak = measured(call, tmp_path / "trace.json")
    shape = Shape(ROWS, (height // 2) * (width // 2), TEXT)
    adapter = Adapter(config.lora.targets, Factors.of(config.lora))
    architecture = base_of(config).transformer
    planned = activations(architecture, shape, adapter, 4, learns, checkpointing)
    assert planned == pytest.approx(peak, rel=0.10)
