"""The fp32 EMA moves as its formula says; in bf16 it would not."""

from __future__ import annotations

import pytest
import torch

from dopsd.method.ema import Ema

DECAY, UPDATES = 0.9999, 2000


def _fraction(start: torch.Tensor, now: torch.Tensor, goal: torch.Tensor) -> float:
    """How much of the way from ``start`` to ``goal`` is covered."""
    way = (goal - start).double()
    return float(((now.double() - start.double()) * way).sum() / (way * way).sum())


def test_2000_updates_toward_a_fixed_student() -> None:
    torch.manual_seed(0)
    start, goal = torch.randn(500), torch.randn(500)
    ema = Ema({"w": start}, DECAY)
    bf16 = start.bfloat16()
    for _ in range(UPDATES):
        ema.update({"w": goal})
        bf16 = DECAY * bf16 + (1 - DECAY) * goal.bfloat16()
    expected = 1 - DECAY**UPDATES
    assert expected == pytest.approx(0.181, abs=5e-4)
    assert _fraction(start, ema.tensors["w"], goal) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(
        ema.tensors["w"], start + expected * (goal - start), atol=1e-4, rtol=0
    )
    # The same recursion with bf16 storage: what public implementations do.
    assert bf16.dtype == torch.bfloat16
    assert _fraction(start.bfloat16(), bf16, goal.bfloat16()) < 0.05


def test_a_bf16_student_is_averaged_in_fp32() -> None:
    start, goal = torch.full((3,), 1.0).bfloat16(), torch.full((3,), 2.0).bfloat16()
    ema = Ema({"w": start}, DECAY)
    for _ in range(10):
        ema.update({"w": goal})
    assert ema.tensors["w"].dtype == torch.float32
    torch.testing.assert_close(
        ema.tensors["w"], torch.full((3,), 2.0 - DECAY**10), atol=1e-6, rtol=0
    )


def test_frozen_and_live() -> None:
    start, goal = torch.randn(50), torch.randn(50)
    frozen, live = Ema({"w": start}, 1.0), Ema({"w": start}, 0.0)
    for ema in (frozen, live):
        ema.update({"w": goal})
    assert torch.equal(frozen.tensors["w"], start)
    assert torch.equal(live.tensors["w"], goal)


def test_it_neither_follows_nor_trains_the_student() -> None:
    student = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": student}, 0.5)
    with torch.no_grad():
        student.fill_(8.0)
    assert ema.tensors["w"].tolist() == [0.0] * 3
    ema.update({"w": student})
    assert ema.tensors["w"].tolist() == [4.0] * 3
    assert not ema.tensors["w"].requires_grad


def test_a_student_without_a_known_tensor_is_refused() -> None:
    with pytest.raises(KeyError, match="b"):
        Ema({"a": torch.zeros(1), "b": torch.zeros(1)}, 0.5).update({"a": torch.zeros(1)})
