"""Bundles and acknowledgements."""

import dataclasses

import pytest
import torch

from dopsd.errors import AcknowledgementError
from dopsd.models.checksum import checksum
from dopsd.policy.bundle import Acknowledgement, check_acknowledgement, read_payload
from tests.helpers.bundles import made_bundle


def state(value: float) -> dict[str, torch.Tensor]:
    return {"a.lora_A.weight": torch.full((2, 3), value), "a.lora_B.weight": torch.ones(3, 2)}


def test_payload_carries_the_inference_dtype():
    bundle = made_bundle(7, state(0.1), state(0.2), torch.bfloat16, bytes)
    tensors = read_payload(bundle.refs["teacher"], "teacher")
    assert tensors["a.lora_A.weight"].dtype == torch.bfloat16
    assert checksum(tensors) == bundle.checksums["teacher"]
    with pytest.raises(AssertionError, match="payload of student"):
        read_payload(bundle.refs["student"], "teacher")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 6}, "rollout-0 acknowledged version 6, published 7"),
        ({"modules": 1}, "rollout-0 acknowledged 1 tensors, published 2"),
        ({"checksums": {"student": "0" * 64}}, "student checksum 000000000000, published"),
    ],
)
def test_wrong_acknowledgements_are_named(change, message):
    bundle = made_bundle(7, state(0.1), state(0.2), torch.float32, bytes)
    ack = Acknowledgement(7, {"student": bundle.checksums["student"]}, 2)
    check_acknowledgement(bundle, ack, "rollout-0")
    with pytest.raises(AcknowledgementError, match=message):
        check_acknowledgement(bundle, dataclasses.replace(ack, **change), "rollout-0")
