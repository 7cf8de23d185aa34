"""Records survive the road as bytes; nothing else is taken for a record."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from dopsd.records import Context, EncodedBatch, SampleInfo, TrainingBatch, Trajectory, pack, unpack

INFO = SampleInfo(
    step=3,
    index=1,
    sample_ids=("a/1", "猫\n2"),
    prompts=('a "[V]" cat', ""),
    height=32,
    width=48,
    step_samples=4,
    repeats=(0, 2),
)


def context(seed: int, dtype: torch.dtype = torch.bfloat16) -> Context:
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, 5, 3, generator=generator).to(dtype)
    return Context({"embeds": embeds, "lengths": torch.tensor([5, 2])})


def records() -> list[Any]:
    states = torch.randn(3, 2, 4, 2, 2)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    return [
        EncodedBatch(INFO, context(0), context(1)),
        Trajectory(INFO, 7, 11, sigmas, states, context(0)),
        # Views of one storage, as the runtime cuts them from a trajectory.
        TrainingBatch(
            INFO, 7, 8, states[:-1], sigmas[:-1], context(0), states[:-1] * 2, sigmas[:-1] ** 2
        ),
        TrainingBatch(
            INFO,
            7,
            8,
            states[:-1],
            sigmas[:-1],
            context(0),
            states[:-1] * 2,
            sigmas[:-1] ** 2,
            finished=states[-1],
        ),
    ]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, Context):
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name in ours.tensors:
            assert_equal(ours.tensors[name], theirs.tensors[name])
    else:
        assert ours == theirs


@pytest.mark.parametrize("record", records(), ids=lambda record: type(record).__name__)
def test_a_record_round_trips(record: Any) -> None:
    again = type(record).from_bytes(record.to_bytes())
    for entry in fields(record):
        assert_equal(getattr(again, entry.name), getattr(record, entry.name))
    assert again.to_bytes() == record.to_bytes()


def test_a_context_of_any_tensors_round_trips() -> None:
    """Other families have other entries; a dot in a name must not be lost."""
    student = Context({"a.b": torch.ones(2, 1), "student": torch.zeros(2).half()})
    again = EncodedBatch.from_bytes(EncodedBatch(INFO, student, context(1)).to_bytes())
    assert_equal(again.student, student)


def test_one_tensor_may_serve_both_contexts() -> None:
    shared = context(0)
    again = EncodedBatch.from_bytes(EncodedBatch(INFO, shared, shared).to_bytes())
    assert_equal(again.student, shared)
    assert_equal(again.teacher, shared)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_pack_keeps_values_dtype_and_meta(dtype: torch.dtype) -> None:
    tensors = {
        "x": torch.arange(6).reshape(2, 3).to(dtype).T,
        "scalar": torch.ones((), dtype=dtype),
    }
    meta = {"text": "猫", "number": 0.1, "list": [1, None, True], "nested": {"a": "b"}}
    again, found = unpack(pack(tensors, meta))
    assert found == meta
    for name, tensor in tensors.items():
        assert_equal(again[name], tensor)


def test_pack_takes_parameters_and_non_finite_values() -> None:
    tensors, meta = unpack(
        pack({"p": torch.nn.Parameter(torch.tensor([float("nan"), 1.0]))}, {"loss": float("inf")})
    )
    assert tensors["p"][0].isnan()
    assert meta["loss"] == math.inf


def test_a_record_is_readable_outside_the_project() -> None:
    payload = records()[1].to_bytes()
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    assert header["student.embeds"]["dtype"] == "BF16"
    assert json.loads(header["__metadata__"]["dopsd"])["info"]["sample_ids"] == ["a/1", "猫\n2"]


def test_another_record_is_refused() -> None:
    payload = records()[0].to_bytes()
    with pytest.raises(ValueError, match="expected a Trajectory record, found 'EncodedBatch'"):
        Trajectory.from_bytes(payload)
    with pytest.raises(ValueError, match="found None"):
        Trajectory.from_bytes(pack({}, {}))


@pytest.mark.parametrize(
    "payload",
    [
        save({"x": torch.zeros(1)}),
        save({"x": torch.zeros(1)}, metadata={"format": "pt"}),
        b"",
        b"\x80\x05a pickle, or anything",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
    ],
    ids=["no metadata", "other metadata", "empty", "garbage", "header is no object"],
)
def test_other_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a dopsd record"):
        unpack(payload)


def test_repeat_keeps_the_batch_order() -> None:
    repeated = context(0).repeat(3)
    embeds = context(0).tensors["embeds"]
    assert torch.equal(repeated.tensors["embeds"], torch.cat([embeds] * 3))
    assert repeated.tensors["lengths"].tolist() == [5, 2] * 3


def test_to_changes_floating_entries_only() -> None:
    moved = context(0).to("cpu", torch.float32)
    assert moved.tensors["embeds"].dtype == torch.float32
    assert moved.tensors["lengths"].dtype == torch.int64


def test_a_repeated_sample_has_noise_of_its_own() -> None:
    assert INFO.noise_ids == ("a/1", "猫\n2/2")
    assert dataclasses.replace(INFO, repeats=()).noise_ids == INFO.sample_ids
