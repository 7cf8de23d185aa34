"""What a GPU's allocator hands out against what is planned, and how long publishing takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dopsd.config import load_config
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.lora import STUDENT
from dopsd.plan import make_plan
from dopsd.plan.architecture import architecture
from dopsd.plan.velocity import Adapter, Shape, activations
from dopsd.policy.bundle import Bundle
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
    adapter = Adapter(blocks.config.lora.targets, blocks.config.lora.rank)
    planned = activations(architecture("z_image", SIZES), shape, adapter, 2, learns, every)
    record_property("peak", f"{peak / MIB:.0f} MiB, planned {planned / MIB:.0f}")
    assert planned == pytest.approx(peak, rel=0.15)


def test_publishing_a_lora_of_z_images_size(device: str, record_property: Record) -> None:
    """Student and teacher of 158.8 M weights in 476 tensors, as they are made into a bundle."""
    model = make_plan(load_config("z_image_turbo_lora")).base.transformer
    fewer = 1 if device == "cuda" else 20  # a rehearsal
    state = {}
    for stack, linear in model.adapted("default"):
        for number in range(max(1, stack.count // fewer)):
            name = f"{stack.kind}.{stack.over}.{number}.{linear.name}"
            state[f"{name}.lora_A.weight"] = torch.randn(64, linear.inputs, device=device)
            state[f"{name}.lora_B.weight"] = torch.randn(linear.outputs, 64, device=device)
    began = time.perf_counter()
    bundle = Bundle.create(1, state, dict(state), torch.bfloat16, len)
    record_property("seconds", f"{time.perf_counter() - began:.2f} for {len(state)} tensors")
    numel = sum(tensor.numel() for tensor in state.values())
    assert bundle.refs[STUDENT] == pytest.approx(2 * numel, rel=0.01)
