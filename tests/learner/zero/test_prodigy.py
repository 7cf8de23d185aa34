"""Prodigy over weights that ZeRO cuts up: against the paper's algorithm written out on one process,
resumed, and in the same engine again."""

from __future__ import annotations

import math

import pytest
import torch

from dopsd.config import LearnerSection
from dopsd.errors import CheckpointError
from dopsd.learner.zero.prodigy import Prodigy
from dopsd.plan.bases import base_of
from dopsd.plan.demand import Demand
from tests.learner.zero.plain import PlainLoop
from tests.learner.zero.test_engine import launch
from tests.learner.zero.zero_rank import PRODIGY, PRODIGY_SAVED, PRODIGY_STEPS, case_config

STAGES = ("zero2", "zero3")
"""Of two ranks; the first one trains in bf16 with them, and alone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prodigy")


@pytest.fixture(scope="module")
def two_ranks(tiny_base, folder):
    cases = [f"{stage}:float32:prodigy" for stage in STAGES]
    again = [f"{case}:resume:{case.replace(':', '-', 1).replace(':', '-2-')}" for case in cases]
    others = ["zero3:float32:prodigy:pieces", "zero2:float32:prodigy:reset"]
    others += ["zero1:bfloat16:prodigy", "zero1:float32:prodigy:resume:zero3-float32-2-prodigy"]
    return launch(2, tiny_base, folder / "two.json", [*cases, *again, *others])


@pytest.fixture(scope="module")
def one_rank(tiny_base, folder, two_ranks):
    cases = ["zero2:float32:prodigy:resume:zero3-float32-2-prodigy", "zero1:float32:prodigy"]
    return launch(1, tiny_base, folder / "one.json", [*cases, "zero1:float32"])


@pytest.fixture(scope="module")
def plain(tiny_base):
    """(losses, rates, weights, d) of Algorithm 4, sums over all weights as Python's numbers."""
    loop = PlainLoop(str(tiny_base))
    weights = loop.weights
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    m, v, s = ({name: torch.zeros_like(w) for name, w in start.items()} for _ in range(3))
    d, r, beta1, beta2 = PRODIGY["d0"], 0.0, 0.9, 0.999
    beta3, decay, losses, rates = math.sqrt(beta2), PRODIGY["weight_decay"], [], []
    for step in range(PRODIGY_STEPS):
        losses.append(loop.clipped_gradients(step)[0])
        rates.append(d)
        inner, size = 0.0, 0.0
        with torch.no_grad():
            for name, x in weights.items():
                g = x.grad
                inner += float((g.double() * (start[name] - x).double()).sum())
                s[name] = beta3 * s[name] + (1 - beta3) * d * d * g
                size += float(s[name].double().abs().sum())
                m[name] = beta1 * m[name] + (1 - beta1) * d * g
                v[name] = beta2 * v[name] + (1 - beta2) * (d * g) ** 2
                x -= d * (m[name] / (v[name].sqrt() + d * 1e-8) + decay * x)
        r = beta3 * r + (1 - beta3) * d * d * inner
        d = max(d, r / size)
    return losses, rates, weights, d


def near(found: dict, plain: tuple, tolerance: float = 1e-3) -> None:
    losses, rates, weights, d = plain
    assert found["loss"] == pytest.approx(losses, rel=tolerance)
    assert found["effective_lr"] == pytest.approx(rates, rel=tolerance)
    assert found["scalars"]["d"] == pytest.approx(d, rel=tolerance)
    for name, weight in weights.items():
        trained = torch.tensor(found["weights"][name])
        apart = (trained - weight.detach().flatten()).abs().mean()
        assert apart < tolerance * weight.abs().mean(), name


@pytest.mark.integration
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_the_algorithm_on_one_process(stage, two_ranks, plain):
    _, rates, weights, d = plain
    assert d > 10 * PRODIGY["d0"], "the rate must be found, or nobody sees whether it is"
    assert rates == sorted(rates) and weights
    near(two_ranks[f"{stage}:float32:prodigy"], plain)


@pytest.mark.integration
def test_one_rank_is_the_same_and_weights_may_be_stepped_in_pieces(two_ranks, one_rank, plain):
    near(one_rank["zero1:float32:prodigy"], plain)
    pieces = two_ranks["zero3:float32:prodigy:pieces"]
    assert pieces["pieces"] > 1
    near(pieces, plain)
    losses, rates, _, _ = plain
    bf16 = two_ranks["zero1:bfloat16:prodigy"]
    assert bf16["loss"] == pytest.approx(losses, rel=0.05)
    assert bf16["effective_lr"] == pytest.approx(rates, rel=0.2)


@pytest.mark.integration
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_learner_is_bitwise_the_uninterrupted_one(stage, two_ranks):
    whole = two_ranks[f"{stage}:float32:prodigy"]
    resumed = two_ranks[f"{stage}:float32:prodigy:resume:{stage}-float32-2-prodigy"]
    for key in ("weights", "teacher", "updates", "saved", "scalars"):
        assert resumed[key] == whole[key], key
    for key in ("loss", "grad_norm", "effective_lr"):
        assert resumed[key] == whole[key][PRODIGY_SAVED:], key


@pytest.mark.integration
def test_other_stages_and_numbers_of_learners_take_the_state(two_ranks, one_rank):
    whole = two_ranks["zero3:float32:prodigy"]
    case = "float32:prodigy:resume:zero3-float32-2-prodigy"
    for found in (two_ranks[f"zero1:{case}"], one_rank[f"zero2:{case}"]):
        assert found["saved"] == whole["saved"]
        assert found["effective_lr"] == pytest.approx(whole["effective_lr"][PRODIGY_SAVED:])
        for name, values in whole["weights"].items():
            assert found["weights"][name] == pytest.approx(values, abs=1e-5), name


@pytest.mark.integration
def test_an_engine_that_is_reset_knows_nothing_of_what_it_trained(two_ranks):
    fresh, again = (two_ranks[f"zero2:float32:prodigy{word}"] for word in ("", ":reset"))
    for key in ("weights", "teacher", "scalars", "effective_lr", "loss"):
        assert again[key] == fresh[key], key


@pytest.mark.integration
@pytest.mark.parametrize("words", ["", ":prodigy"])
def test_the_optimizers_state_takes_what_is_planned(words, one_rank, tiny_base):
    config = case_config(str(tiny_base), "zero1", "float32", **(PRODIGY if words else {}))
    planned = Demand(config, base_of(config)).learner(1, fused=False).parts["optimizer"]
    assert one_rank[f"zero1:float32{words}"]["state_bytes"] == pytest.approx(planned, rel=0.01)


def test_scalars_that_are_none_are_refused():
    optimizer = Prodigy([torch.nn.Parameter(torch.ones(2))], LearnerSection(**PRODIGY))
    optimizer.set_scalars({"d": 0.5, "r": -1e-9})
    assert optimizer.scalars() == {"d": 0.5, "r": -1e-9}
    for bad, said in (
        ({"d": 0.5}, "r: missing"),
        ({"d": 0.0, "r": 0.0}, "d: found 0.0, allowed: .*greater than 0"),
        ({"d": math.inf, "r": 0.0}, "d: found .*inf.* finite"),
        ({"d": 0.5, "r": math.nan}, "r: found .*nan.* finite"),
        ([], "found list"),
    ):
        with pytest.raises(CheckpointError, match=f"^checkpoint: Prodigy's scalars: {said}"):
            optimizer.set_scalars(bad)
