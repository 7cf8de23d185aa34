"""Kernels: attention backends, compiled blocks, quantised weights, determinism."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dopsd.driver.doctor.cuda_probe import probe
from dopsd.errors import DopsdError
from dopsd.models.attention import TRAINABLE, set_attention
from dopsd.models.compiled import compile_blocks
from dopsd.models.quantize import as_buffers, check_quantize, for_transformer, resident_bytes
from dopsd.ray_cluster.process import set_up
from tests.gpu.blocks import Blocks, difference, sizes

Record = Callable[[str, object], None]
ON_CPU = ("native", "_native_flash", "_native_math")
"""Attention backends with a backward on the CPU as well."""


@pytest.fixture
def blocks(tiny_base: Path, device: str) -> Blocks:
    return Blocks(tiny_base, device)


def test_torch_computes_and_nccl_sums(cuda: str, record_property: Record) -> None:
    found = probe()
    assert found["count"] >= 1 and found["errors"] == []
    assert "nccl" in found, found
    record_property("NCCL", found["nccl"])


@pytest.mark.parametrize("name", TRAINABLE)
def test_an_attention_backend_has_the_gradients_of_the_native_one(
    name: str, blocks: Blocks, device: str, record_property: Record
) -> None:
    """A backend that is not installed here is skipped with diffusers' own reason; one that is there
    has to work."""
    set_attention(blocks.model, "native")
    expected = blocks.gradients()
    try:
        _choose(blocks, name)
        if device == "cpu" and name not in ON_CPU:
            pytest.skip("of CUDA alone")
        found = blocks.gradients()
    finally:
        set_attention(blocks.model, "native")
    record_property("difference", f"{difference(found, expected):.1e}")
    assert difference(found, expected) < 0.02


def _choose(blocks: Blocks, attention: str) -> None:
    try:
        set_attention(blocks.model, attention, "learner.attention")
    except DopsdError as error:
        pytest.skip(str(error))


def test_compiled_blocks_give_the_same_velocity(
    cuda: str, blocks: Blocks, record_property: Record
) -> None:
    with torch.no_grad():
        expected = blocks.velocity()
        before = _seconds(blocks)
        began = time.perf_counter()
        compile_blocks(blocks.model)
        found = blocks.velocity()
        torch.cuda.synchronize()
        record_property("first call", f"{time.perf_counter() - began:.0f} s")
        record_property("speed-up", f"{before / _seconds(blocks):.2f}")
    assert difference(found, expected) < 0.02


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_quantised_weights_take_less_and_train_alike(
    kind: str, tiny_base: Path, tmp_path: Path, device: str, record_property: Record
) -> None:
    try:
        check_quantize(kind, "model.quantize", on_cpu=device == "cpu")
    except DopsdError as error:
        pytest.skip(str(error))
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    plain = ZImageTransformer2DModel(**sizes(device)).to(torch.bfloat16)
    plain.save_pretrained(tmp_path)
    options = {"device_map": {"": device}} if device != "cpu" else {}
    quantised = ZImageTransformer2DModel.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        quantization_config=for_transformer(kind, torch.bfloat16, plain),
        **options,
    )
    models = plain.to(device), quantised
    taken = [resident_bytes(model) for model in models]
    both = []
    for model in models:
        blocks = Blocks(tiny_base, device, model=model)
        as_buffers(blocks.model)
        both.append(blocks.gradients())
    record_property("bytes", f"{taken[1] / taken[0]:.2f} of bf16")
    record_property("gradients differ by", f"{difference(both[1], both[0]):.3f}")
    assert taken[1] < {"int8": 0.6, "fp8": 0.6, "nf4": 0.4}[kind] * taken[0]
    assert difference(both[1], both[0]) < {"int8": 0.05, "fp8": 0.15, "nf4": 0.4}[kind]


@pytest.fixture
def strict(device: str) -> Iterator[None]:
    set_up(device, "strict")
    yield
    set_up(device)


def test_strict_determinism_gives_the_same_bits_twice(
    strict: None, blocks: Blocks, record_property: Record
) -> None:
    first, second = blocks.gradients(), blocks.gradients()
    assert torch.equal(first, second)
    record_property("gradients", f"{len(first)} the same")


def _seconds(blocks: Blocks, calls: int = 5) -> float:
    """Of one velocity."""
    blocks.velocity()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        blocks.velocity()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls
