"""Which inputs a micro-batch takes from stage to stage, and again when it is lost; no actors."""

from __future__ import annotations

from typing import Any

import pytest

from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.coordinator.pooled_worker import Finished
from dopsd.errors import WorkerError
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import resolve_roles
from tests.helpers.tiny import make_config

KEY = (0, 0)
BUNDLES = {0: Bundle(0, {}, {}, 0)}


class Reference(str):
    def hex(self) -> str:
        return str(self)


class Pool:
    """A pool with room for everything: what was submitted, and what comes out at the next look."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Any, ...]] = []
        self.loaded: list[tuple[int, int]] = []
        """Versions, and how many workers the step can use, as often as that is asked for."""
        self.finished: list[Finished] = []
        self.again: list[tuple[int, int]] = []
        self.lost_objects: set[str] = set()
        self.workers: list[Any] = []
        self.events = 0

    def load(self, bundle: Bundle, most: int) -> None:
        self.loaded.append((bundle.version, most))

    def free_worker(self, bundle: Bundle) -> object:
        return self

    def submit(self, worker: object, key: tuple[int, int], bundle: Bundle, *inputs: Any) -> None:
        assert key == KEY and bundle is BUNDLES[0]
        self.submitted.append(inputs)

    def collect(self) -> tuple[list[Finished], list[tuple[int, int]]]:
        outcome = self.finished, self.again
        self.finished, self.again = [], []
        return outcome

    def drain_spans(self) -> list[Any]:
        return []

    def reset(self) -> None:
        pass


@pytest.fixture
def stages():
    """(dispatcher, rollout's pool, teacher's pool), the first micro-batch submitted."""
    config = make_config("base", inference={"max_restarts": 0})
    ready: list[str] = []
    dispatcher = Dispatcher(
        config,
        resolve_roles(config, 0.0),
        lambda step: 1,
        lambda item, result: ready.append(result),
        lambda spans: None,
    )
    pools: list[Any] = [Pool(), Pool()]
    dispatcher.pools = pools
    dispatcher.rewind(0)
    dispatcher.blocks.append((KEY, Reference("block")))
    dispatcher.advance(0, BUNDLES)
    return dispatcher, *pools, ready


def step(dispatcher: Dispatcher) -> None:
    dispatcher.collect()
    dispatcher.advance(0, BUNDLES)


def boxes(dispatcher: Dispatcher, step: int, size: int = 1) -> list[ObjectRefBox]:
    return dispatcher.boxes(step, [(index, True) for index in range(size)])


def test_the_teacher_gets_the_block_and_the_trajectory(stages):
    dispatcher, rollout, teacher, ready = stages
    rollout.finished = [Finished(KEY, Reference("trajectory"))]
    step(dispatcher)
    assert rollout.submitted == [("block",)] and teacher.submitted == [("block", "trajectory")]
    teacher.finished = [Finished(KEY, Reference("scored"))]
    step(dispatcher)
    assert ready == ["scored"] and [box.ref for box in boxes(dispatcher, 0)] == ["scored"]


def test_every_pool_loads_a_version_as_soon_as_it_is_published(stages):
    """At lag 0, where the teacher's first micro-batch comes to it only after a roll-out."""
    dispatcher, rollout, teacher, _ = stages
    bundles = {version: Bundle(version, {}, {}, 0) for version in (0, 1)}
    for version in (0, 1):
        rollout.loaded.clear(), teacher.loaded.clear()
        dispatcher.rewind(version)
        dispatcher.advance(version, bundles)  # without a block, as while encoders are late
        assert rollout.loaded == teacher.loaded == [(version, 1)]
    assert rollout.submitted == [("block",)] and teacher.submitted == []


def test_nothing_is_loaded_that_no_step_is_generated_by(stages):
    dispatcher, rollout, teacher, _ = stages
    rollout.loaded.clear(), teacher.loaded.clear()
    dispatcher.rewind(dispatcher.config.learner.steps)
    last = dispatcher.config.learner.steps
    dispatcher.advance(last, {last: Bundle(last, {}, {}, 0)})
    assert rollout.loaded == teacher.loaded == []


@pytest.mark.parametrize(("version", "micro_batches"), [(0, 1 + 2 + 3), (1, 4), (2, 5), (3, 6)])
def test_a_version_is_for_as_many_workers_as_it_generates_micro_batches(version, micro_batches):
    """At lag 2, where the first one generates three steps; step s has s + 1 micro-batches here."""
    config = make_config("base", max_policy_lag=2, learner={"steps": 6})
    roles = resolve_roles(config, 0.0)
    dispatcher = Dispatcher(config, roles, lambda step: step + 1, print, print)
    pool: Any = Pool()
    dispatcher.pools = [pool]
    dispatcher.rewind(version + 2 if version else 0)
    dispatcher.advance(version, {version: Bundle(version, {}, {}, 0)})
    assert pool.loaded == [(version, micro_batches)]


def test_how_many_workers_can_be_spared_for_pictures():
    """At lag 0; step s has s + 1 micro-batches here."""
    config = make_config("base", learner={"steps": 3})
    dispatcher = Dispatcher(config, resolve_roles(config, 0.0), lambda step: step + 1, print, print)
    pool: Any = Pool()
    pool.submit = lambda *_: None
    dispatcher.pools = [pool]
    dispatcher.rewind(0)
    assert dispatcher.workers_wanted(0) == 2, "step 1 follows"
    assert dispatcher.expects(0) and dispatcher.handed_out, "its block is not there yet"
    dispatcher.blocks.append(((0, 0), Reference("block")))
    dispatcher.advance(0, {})
    assert not dispatcher.handed_out, "nobody has loaded the version"
    dispatcher.advance(0, BUNDLES)
    assert dispatcher.handed_out and not dispatcher.expects(0), "step 1 needs version 1"
    assert dispatcher.expects(1) and dispatcher.workers_wanted(1) == 3
    dispatcher.rewind(3)
    assert dispatcher.workers_wanted(3) == 0 and not dispatcher.expects(3), "all is rolled out"


def test_what_a_teacher_loses_is_rolled_out_again_from_its_block(stages):
    dispatcher, rollout, teacher, _ = stages
    rollout.finished = [Finished(KEY, Reference("trajectory"))]
    step(dispatcher)
    teacher.again = [KEY]
    step(dispatcher)
    assert rollout.submitted == [("block",), ("block",)], "nothing of the lost attempt is used"
    assert not dispatcher.missing


def test_a_lost_block_is_awaited_once_more(stages):
    dispatcher, rollout, _, _ = stages
    rollout.again, rollout.lost_objects = [KEY], {"block"}
    step(dispatcher)
    assert dispatcher.missing == {KEY} and len(rollout.submitted) == 1
    dispatcher.renew(KEY, Reference("block again"))
    step(dispatcher)
    assert rollout.submitted[-1] == ("block again",) and not dispatcher.missing


def test_a_stage_waits_for_what_an_older_version_has_not_brought_yet(stages, monkeypatch):
    """At lag 0: a lost micro-batch of version 0 comes to the teacher before those of version 1."""
    dispatcher, rollout, teacher, _ = stages
    monkeypatch.setattr(Pool, "submit", lambda pool, worker, key, *_: pool.submitted.append(key))
    dispatcher.rewind(0)
    bundles = {version: Bundle(version, {}, {}, 0) for version in (0, 1)}

    def move(**ended: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """What the teacher is given after the roll-outs of ``ended`` came, or came to nothing."""
        rollout.finished = [Finished(key, Reference("rolled")) for key in ended.get("rolled", [])]
        teacher.finished = [Finished(key, Reference("scored")) for key in ended.get("scored", [])]
        teacher.again = ended.get("again", [])
        teacher.submitted.clear()
        dispatcher.collect()
        dispatcher.advance(1, bundles)
        return list(teacher.submitted)

    first, second = (0, 0), (1, 0)
    dispatcher.blocks.extend([(first, Reference("block")), (second, Reference("block"))])
    assert move() == []
    assert {version for version, _ in teacher.loaded} == {0}, "not the one that comes behind it"
    assert move(rolled=[second]) == [], "version 0 is still on its way"
    assert move(rolled=[first]) == [first, second]
    assert move(again=[first]) == []
    assert move(rolled=[first], again=[second]) == [first]
    assert move(scored=[first], rolled=[second]) == [second]
    assert move(scored=[second]) == [] and boxes(dispatcher, 0) and boxes(dispatcher, 1)


def test_it_is_not_generated_for_ever(stages):
    dispatcher, rollout, _, _ = stages
    with pytest.raises(WorkerError, match=r"^step 0 micro-batch 0 was lost 4 times$"):
        for _ in range(4):
            rollout.again = [KEY]
            step(dispatcher)
