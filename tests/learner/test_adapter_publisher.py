"""What the publication of a LoRA copies, gathers and hashes; counted, since it is on the critical
path of every step."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from dopsd.learner.adapter_publisher import AdapterPublisher
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import read_payload
from dopsd.policy.flat import FlatLayout
from tests.helpers.tiny import make_config

SHAPES = {f"block.{n}.lora_{side}.weight": (3, 5) for n in range(40) for side in "AB"}


class Weights:
    """80 tensors in bfloat16; counts how often either adapter is asked for."""

    layout = FlatLayout(SHAPES, torch.bfloat16)

    def __init__(self, moves: bool = True) -> None:
        self.teacher_moves = moves
        self.asked: list[str] = []
        self.state = {
            adapter: torch.randn(self.layout.numel, generator=torch.Generator().manual_seed(seed))
            for seed, adapter in enumerate((STUDENT, TEACHER))
        }

    def flat(self, adapter: str) -> torch.Tensor:
        self.asked.append(adapter)
        return self.state[adapter].bfloat16()


class Store:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def put(self, payload: np.ndarray) -> int:
        self.payloads.append(payload.tobytes())
        return len(self.payloads) - 1


def publisher(
    weights: Weights, store: Store, speaks: bool = True, **method: Any
) -> AdapterPublisher:
    made_of: Any = weights
    return AdapterPublisher(make_config("base", method=method).method, made_of, store.put, speaks)


def test_what_arrives_is_what_was_sent_bit_for_bit() -> None:
    weights, store = Weights(), Store()
    bundle = publisher(weights, store).bundle(3)
    assert (bundle.version, bundle.modules) == (3, len(SHAPES))
    for adapter in (STUDENT, TEACHER):
        sent = weights.layout.views(weights.state[adapter].bfloat16())
        found = read_payload(store.payloads[bundle.refs[adapter]], adapter)
        assert found.keys() == sent.keys()
        assert all(torch.equal(found[name], sent[name]) for name in sent)
        assert checksum(found) == bundle.checksums[adapter]


def test_a_version_costs_one_copy_of_its_bytes_and_no_hash_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, store = Weights(), Store()
    made = publisher(weights, store)
    made.bundle(0)
    copied: list[int] = []
    plain = torch.Tensor.copy_

    def counted(tensor: torch.Tensor, other: torch.Tensor, **how: Any) -> torch.Tensor:
        copied.append(other.nbytes)
        assert how == {"non_blocking": True}
        return plain(tensor, other, **how)

    def refuse(*_: Any) -> Any:
        raise AssertionError("weights are hashed, or copied to the host one by one")

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    monkeypatch.setattr(torch.Tensor, "cpu", refuse)
    monkeypatch.setattr(hashlib, "sha256", refuse)
    monkeypatch.setattr(hashlib, "blake2b", refuse)
    made.bundle(1)
    assert copied == [weights.layout.nbytes] * 2, "student and teacher, once each"
    assert weights.asked == [STUDENT, TEACHER] * 2


def test_a_frozen_teacher_is_sent_once_and_a_student_nobody_rolls_out_never() -> None:
    weights, store = Weights(moves=False), Store()
    made = publisher(weights, store)
    first, second = made.bundle(0), made.bundle(1)
    assert first.refs[TEACHER] == second.refs[TEACHER] and len(store.payloads) == 3
    assert first.checksums[TEACHER] == second.checksums[TEACHER]
    weights, store = Weights(), Store()
    taught = publisher(weights, store, objective="off_policy").bundle(0)
    assert set(taught.refs) == set(taught.checksums) == {TEACHER} == set(weights.asked)


@pytest.mark.parametrize("moves", [True, False])
def test_a_rank_that_does_not_speak_takes_part_and_copies_nothing(moves: bool) -> None:
    spoken, weights, store = Weights(moves), Weights(moves), Store()
    speaks, listens = publisher(spoken, Store()), publisher(weights, store, speaks=False)
    for version in range(3):
        speaks.bundle(version)
        assert listens.bundle(version).refs == {}
    assert weights.asked == spoken.asked, "both enter the same collectives"
    assert store.payloads == []
