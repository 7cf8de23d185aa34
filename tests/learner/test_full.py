"""All weights trained under ZeRO: against plain AdamW, and what is published of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dopsd.models import FAMILIES
from dopsd.records import Context
from tests.learner.full_rank import DECAY, EVERY, LIMIT, LR, STEPS, full_config, weights_file
from tests.learner.zero.test_engine import launch
from tests.learner.zero.zero_rank import STATES, batches

pytestmark = pytest.mark.integration

FP32 = ("zero3:float32", "zero2:float32", "zero1:float32")
CASES = (*FP32, "zero3:bfloat16", "zero1:bfloat16")


@pytest.fixture(scope="module")
def ranks(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("full") / "two.json"
    found = launch(2, tiny_base, out, list(CASES), "tests.learner.full_rank")
    for case in FP32:
        found[case]["weights"] = load_file(out.parent / weights_file(case))
    return found


@pytest.fixture(scope="module")
def plain(tiny_base: Path):
    """One process, one whole model, torch's AdamW; no DeepSpeed, no learner."""
    config = full_config(str(tiny_base))
    family = FAMILIES["z_image"](str(tiny_base))
    transformer = family.load_transformer(torch.float32, "cpu").requires_grad_(True)
    weights = dict(transformer.named_parameters())
    optimizer = torch.optim.AdamW(weights.values(), lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        made = batches(step % 3)
        samples = sum(len(batch.info) for batch in made)
        loss = torch.zeros(())
        for batch in made:
            for k in range(STATES):
                sigma = batch.sigmas[k].expand(len(batch.info))
                context = Context(batch.student.tensors)
                velocity = family.velocity(transformer, batch.states[k], sigma, context)
                error = (velocity - batch.target_velocity[k]).square().mean(dim=(1, 2, 3))
                loss = loss + batch.weight[k] * error.sum() / (samples * STATES)
        optimizer.zero_grad()
        loss.backward()
        for weight in weights.values():  # ZeRO takes no gradient for one of zero
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        norms.append(
            float(torch.nn.utils.clip_grad_norm_(weights.values(), config.learner.max_grad_norm))
        )
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms, weights


@pytest.mark.parametrize("case", FP32)
def test_two_ranks_train_all_weights_as_plain_adamw(case, ranks, plain):
    losses, norms, weights = plain
    found = ranks[case]
    assert found["loss"] == pytest.approx(losses, rel=1e-4)
    assert found["grad_norm"] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 0.5, "the clip must act, or nobody sees whether it does"
    assert found["weights"].keys() == weights.keys()
    apart = {
        name: float((found["weights"][name] - weight.detach()).abs().max())
        for name, weight in weights.items()
    }
    assert max(apart.values()) < 1e-5, max(apart, key=apart.__getitem__)


@pytest.mark.parametrize("case", CASES)
def test_published_weights_are_bitwise_the_gathered_ones(case, ranks):
    published = ranks[case]["published"]
    assert [each["version"] for each in published] == list(range(STEPS + 1))
    assert all(each["names"] and each["bitwise"] for each in published)
    assert all(each["checksums"] == 2 * ranks[case]["buckets"] for each in published)


@pytest.mark.parametrize("case", CASES)
def test_the_teacher_goes_out_every_n_steps_and_is_the_plain_average(case, ranks):
    published = ranks[case]["published"]
    assert [each["teacher_version"] for each in published] == [v - v % EVERY for v in range(6)]
    # An average that is one ulp apart may be rounded to the next bf16.
    rounding = 1e-6 if case.endswith("float32") else 1e-2
    for before, now in zip(published, published[1:]):
        moved = now["version"] % EVERY == 0
        assert (now["teacher_refs"] != before["teacher_refs"]) == moved
        if moved:
            assert now["teacher_apart"] < rounding
    assert published[1]["teacher_apart"] > 1e-5, "a teacher that is behind is seen to be"


@pytest.mark.parametrize("case", CASES)
def test_no_rank_holds_a_whole_average(case, ranks):
    found = ranks[case]
    # ZeRO pads each rank's part.
    assert found["own_average"] <= found["elements"] / 2 + 4096


@pytest.mark.parametrize("case", CASES)
def test_publication_takes_a_bucket_not_a_model(case, ranks):
    found = ranks[case]
    assert found["buckets"] > 8
    # One tensor is larger than the limit and makes a bucket of its own.
    assert LIMIT / 2 < found["peak"] <= 2 * found["largest"] + 2**14 < found["model_bytes"]
    assert found["kept"] == 0, "a bucket is gone when the next one is gathered"


def test_decay_is_the_configs():
    assert full_config("shapes").method.teacher_decay == DECAY
