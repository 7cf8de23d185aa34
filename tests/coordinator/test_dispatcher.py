"""Which inputs a micro-batch takes from stage to stage, and again when it is lost; no actors."""

from __future__ import annotations

from typing import Any

import pytest

from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.worker_pool import Finished
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
        self.finished: list[Finished] = []
        self.again: list[tuple[int, int]] = []
        self.lost_objects: set[str] = set()
        self.workers: list[Any] = []
        self.events = 0

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


def test_the_teacher_gets_the_block_and_the_trajectory(stages):
    dispatcher, rollout, teacher, ready = stages
    rollout.finished = [Finished(KEY, Reference("trajectory"))]
    step(dispatcher)
    assert rollout.submitted == [("block",)] and teacher.submitted == [("block", "trajectory")]
    teacher.finished = [Finished(KEY, Reference("scored"))]
    step(dispatcher)
    assert ready == ["scored"] and dispatcher.ready({KEY})
    assert dispatcher.box(KEY, True).ref == "scored"


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
    assert move(rolled=[second]) == [], "version 0 is still on its way"
    assert move(rolled=[first]) == [first, second]
    assert move(again=[first]) == []
    assert move(rolled=[first], again=[second]) == [first]
    assert move(scored=[first], rolled=[second]) == [second]
    assert move(scored=[second]) == [] and dispatcher.ready({first, second})


def test_it_is_not_generated_for_ever(stages):
    dispatcher, rollout, _, _ = stages
    with pytest.raises(WorkerError, match=r"^step 0 micro-batch 0 was lost 4 times$"):
        for _ in range(4):
            rollout.again = [KEY]
            step(dispatcher)
