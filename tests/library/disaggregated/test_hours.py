"""What a library with shared pools is planned to take."""

from __future__ import annotations

import pytest

from dopsd.library.catalogue.catalogue import catalogue_of
from dopsd.library.catalogue.estimate import Estimate, estimate
from dopsd.library.catalogue.recipe import Recipes
from dopsd.library.disaggregated.hours import PooledPace, Stage
from dopsd.plan.cards import CARDS, DEFAULT
from tests.library.catalogue.test_catalogue import config, listed

CONCEPTS, PICTURES = 40, 10


def planned(*overrides: str, concepts: int = CONCEPTS) -> Estimate:
    run = config("source=disaggregated", "device=auto", *overrides)
    samples = listed({f"c{number}": PICTURES for number in range(concepts)})
    recipes = Recipes(run)
    return estimate(recipes.config, catalogue_of(run, samples, recipes), CARDS[DEFAULT], 0.5)


def test_the_fullest_role_or_too_few_concepts_say_what_a_step_takes() -> None:
    stages = (
        Stage("rollout", 12.0, 12.0),
        Stage("teacher", 14.0, 14.0),
        Stage("learner", 38.0, 38.0),
    )
    pace = PooledPace(stages, 1, 2)
    assert pace.alone == 64.0
    assert (pace.step(1), pace.step(2), pace.step(9)) == (64.0, 38.0, 38.0)
    assert pace.busy(1)["learner"] == pytest.approx(38 / 64)
    assert pace.busy(2) == pytest.approx({"rollout": 12 / 38, "teacher": 14 / 38, "learner": 1.0})


def test_hours_follow_learners_until_a_pool_is_the_fullest() -> None:
    pools = "rollout.workers=2", "teacher.workers=2"
    one, two = (planned(f"library.workers={workers}", *pools) for workers in (1, 2))
    assert one.pooled is not None and one.train_hours and two.train_hours
    rollout, teacher, learner = one.pooled.stages
    law = 1 + -(-(rollout.step + teacher.step) // learner.step)
    assert one.pooled.in_flight == max(2, min(8, law))
    assert one.train_hours == pytest.approx(one.steps * learner.step / 3600)
    assert two.train_hours == pytest.approx(one.train_hours / 2)
    # More learners than the pools can serve train no faster.
    many = [planned(f"library.workers={workers}") for workers in (16, 20)]
    assert many[0].train_hours == pytest.approx(many[1].train_hours)
    busy = many[0].pooled.busy(many[0].in_flight) if many[0].pooled else {}
    assert max(busy["rollout"], busy["teacher"]) == pytest.approx(1.0) and busy["learner"] < 1
    served = planned("library.workers=16", "rollout.workers=8", "teacher.workers=8")
    assert served.train_hours and many[0].train_hours and served.train_hours < many[0].train_hours


def test_a_single_concept_waits_for_every_role() -> None:
    alone = planned(concepts=1)
    assert alone.pooled is not None and alone.in_flight == 1
    assert alone.step_seconds == pytest.approx(alone.pooled.alone)
    assert alone.train_hours == pytest.approx(alone.steps * alone.pooled.alone / 3600)


def test_states_are_those_of_the_concepts_in_flight() -> None:
    fused = planned("source=fused", "library.workers=4")
    three = planned("library.workers=4", "library.in_flight=3")
    assert (fused.in_flight, three.in_flight) == (4, 12)
    assert three.state_bytes == 3 * fused.state_bytes
    (line,) = [line for line in three.lines() if line.startswith("workers: ")]
    assert line.startswith(
        "workers: 4 learners with 3 concepts each, and the pools that all share, on "
    )
    assert three.record()["busy"].keys() == {"rollout", "teacher", "learner"}


def test_one_pool_may_do_both() -> None:
    shared = planned("inference.shared=true", "rollout.workers=3")
    assert shared.pooled is not None and shared.train_hours
    assert [stage.name for stage in shared.pooled.stages] == ["pool", "learner"]
