"""What a GPU's allocator hands out against what is planned, and how long publishing takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dopsd.config import load_config
from dopsd.learner.adapter_publisher import AdapterPublisher
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.lora.factors import Factors
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.plan import make_plan
from dopsd.plan.architecture import architecture
from dopsd.plan.velocity import Adapter, Shape, activations
from dopsd.policy.flat import FlatLayout
from tests.gpu.blocks import SIZES, TEXT, Blocks, latent_side

MIB = 2**20
Record = Callable[[str, object], None]


@pytest.mark.parametrize(("learns", "every"), [(False, 0), (True, 0), (True, 1), (True, 2)])
def test_peak_memory_is_what_is_planned(
    learns: bool, every: int, cuda: str, tiny_base: Path, record_property: Record
) -> None:
    blocks = Blocks(tiny_base, cuda)
    checkpoint_every(blocks.model, every)
    blocks.gradients() if learns else blocks.velocity()  # cuBLAS takes its workspace
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.set_grad_enabled(learns):
        velocity = blocks.velocity()
        if learns:
            velocity.square().mean().backward()
    peak = torch.cuda.max_memory_allocated() - before
    shape = Shape(1, (latent_side(cuda) // 2) ** 2, TEXT)
    adapter = Adapter(blocks.config.lora.targets, Factors.of(blocks.config.lora))
    planned = activations(architecture("z_image", SIZES), shape, adapter, 2, learns, every)
    record_property("peak", f"{peak / MIB:.0f} MiB, planned {planned / MIB:.0f}")
    assert planned == pytest.approx(peak, rel=0.15)


def test_publishing_a_lora_of_z_images_size(device: str, record_property: Record) -> None:
    """Student and teacher of 158.8 M weights in 476 tensors, as they are made into a bundle: from
    flat ones on the device to bytes on the host, the object store's own copy left away."""
    model = make_plan(load_config("z_image_turbo_lora")).base.transformer
    fewer = 1 if device == "cuda" else 20  # a rehearsal
    shapes: dict[str, tuple[int, ...]] = {}
    for stack, linear in model.adapted("default"):
        for number in range(max(1, stack.count // fewer)):
            name = f"{stack.kind}.{stack.over}.{number}.{linear.name}"
            shapes[f"{name}.lora_A.weight"] = (64, linear.inputs)
            shapes[f"{name}.lora_B.weight"] = (linear.outputs, 64)
    weights: Any = _Published(FlatLayout(shapes, torch.bfloat16), device)
    publisher = AdapterPublisher(load_config("shapes").method, weights, len, speaks=True)
    publisher.bundle(0)  # the memory of the host is page-locked once
    began = time.perf_counter()
    bundle = publisher.bundle(1)
    record_property("seconds", f"{time.perf_counter() - began:.2f} for {len(shapes)} tensors")
    assert bundle.refs[STUDENT] == pytest.approx(weights.layout.nbytes, rel=0.01)


class _Published:
    """As a learner's weights are to a publisher."""

    teacher_moves = True

    def __init__(self, layout: FlatLayout, device: str) -> None:
        self.layout = layout
        self._state = {
            adapter: torch.randn(layout.numel, dtype=layout.dtype, device=device)
            for adapter in (STUDENT, TEACHER)
        }

    def flat(self, adapter: str) -> Tensor:
        return self._state[adapter]
