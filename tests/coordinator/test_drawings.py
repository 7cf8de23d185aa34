"""When a rollout worker draws own prompts, and what becomes of those that fail; no actors."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from dopsd.coordinator import drawings as module
from dopsd.coordinator.drawings import Drawings
from dopsd.coordinator.learner_group import LearnerGroup
from dopsd.coordinator.messages import PromptsToDraw
from dopsd.coordinator.pooled_worker import Call, PooledWorker
from dopsd.coordinator.worker_pool import WorkerPool
from dopsd.models.lora.layers import STUDENT
from dopsd.policy.bundle import Bundle
from dopsd.ray_cluster.placement import resolve_roles
from tests.helpers.tiny import make_config

SOON, NEVER = math.inf, -math.inf
"""Until when the learners are busy."""


def bundle(version: int) -> Bundle:
    return Bundle(version, {STUDENT: f"weights {version}"}, {STUDENT: "sum"}, 1)


class Pool(WorkerPool):
    """Its actors draw in words."""

    def _launch(self) -> Any:
        def remote(version: int, *arguments: Any) -> tuple[str, str]:
            return f"picture {version} {arguments[2]}", f"stats {version} {arguments[2]}"

        return SimpleNamespace(
            draw=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))
        )


class World:
    """Drawings of two prompts in a pool; ``endings``: what a picture's stats are, or what it
    raises, once it has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int, **sections: Any) -> None:
        preview = {"prompts": ["a cat", "a mat"], "every": 2}
        config = make_config(
            "base", rollout={"workers": workers}, preview=preview, learner={"steps": 10}, **sections
        )
        rollout = resolve_roles(config, 0.0).rollout
        assert rollout is not None
        self.pool = Pool(config, rollout, (STUDENT,), "generate")
        self.endings: dict[str, Any] = {}
        self.killed: list[Any] = []
        fake = SimpleNamespace(wait=self._wait, get=self._get, kill=self.killed.append)
        monkeypatch.setattr(module, "ray", fake)
        monkeypatch.setattr("dopsd.coordinator.worker_pool.ray", fake)
        monkeypatch.setattr("dopsd.coordinator.worker_pool.node_of", lambda handle: "node")
        monkeypatch.setattr("dopsd.coordinator.worker_pool.on_lost_nodes", lambda nodes: 0)
        self.dispatcher = SimpleNamespace(
            pools=[self.pool],
            handed_out=True,
            expects=lambda published: self.expecting,
            workers_wanted=lambda published: 2,
            rollout_seconds=1.0,
        )
        self.expecting = False
        self.taken: list[tuple[int, int]] = []
        self.told: list[str] = []
        prompts = PromptsToDraw(("context 0", "context 1"), (16, 16))
        self.drawings = Drawings(
            config,
            prompts,
            self.dispatcher,
            lambda drawn, _: self.taken.append(drawn),
            self.told.append,
        )
        for worker in self.pool.workers:
            worker.loaded = 0

    @property
    def last(self) -> PooledWorker:
        return self.pool.workers[-1]

    def _wait(self, refs: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.endings], []

    def _get(self, ref: str) -> Any:
        ending = self.endings[ref]
        if isinstance(ending, Exception):
            raise ending
        return ending

    def advance(self, busy_until: float = SOON) -> str | None:
        """What is under way after another look at idle workers."""
        self.drawings.advance(0, busy_until)
        (ref,) = self.drawings.pending() or [None]
        return ref

    def end(self, ending: Any = None) -> None:
        """The picture under way ends."""
        (ref,) = self.drawings.pending()
        self.endings[ref] = ending or {"seconds": 1.0, "loading": 0.0}
        assert self.drawings.collect() and not self.drawings.collect()


@pytest.fixture
def world(monkeypatch):
    """A pool of which a version can use every worker."""
    return World(monkeypatch, workers=2)


def test_one_picture_at_a_time_in_the_order_of_versions_and_prompts(world):
    world.drawings.offer(bundle(0))
    world.drawings.offer(bundle(1))
    world.drawings.offer(bundle(2))
    order = []
    assert not world.drawings.collect()
    while (ref := world.advance()) is not None:
        assert world.advance() == ref and not world.drawings.collect(), "no second one beside it"
        assert [worker.drawing is not None for worker in world.pool.workers] == [False, True]
        order.append(ref)
        world.end()
    assert order == ["stats 0 0", "stats 0 1", "stats 2 0", "stats 2 1"], "1 is not wanted"
    assert world.taken == [(0, 0), (0, 1), (2, 0), (2, 1)] and world.told == []
    assert world.drawings.counts == (4, 2 * 5), "of versions 0, 2, 4, 6 and 8"


def test_a_roll_out_comes_before_any_picture(world):
    world.drawings.offer(bundle(0))
    world.last.calls = [Call((0, 0), bundle(0), "done", None, 0.0)]
    assert world.advance() is None, "it rolls out"
    world.last.calls = []
    world.dispatcher.handed_out = False
    assert world.advance() is None, "a micro-batch waits for a worker"
    world.dispatcher.handed_out, world.expecting = True, True
    assert world.advance() is None, "one may come from the stream at any moment"
    world.expecting = False
    assert world.advance(NEVER) is None, "nobody knows when the next version comes"
    assert world.advance(time.monotonic() + 0.5) is None, "it comes before a roll-out would end"
    assert world.advance(time.monotonic() + 2) == "stats 0 0"


def test_a_worker_more_than_a_version_can_use_draws_whenever_it_likes(monkeypatch):
    world = World(monkeypatch, workers=3)
    world.last.loaded = -1  # nobody needed it
    world.drawings.offer(bundle(0))
    world.expecting = True
    assert world.advance(NEVER) == "stats 0 0"
    world.end()
    world.dispatcher.handed_out = False
    assert world.advance(NEVER) is None, "they have more to do than they can"


def test_the_weights_of_two_versions_are_kept_at_most(world):
    for version in (0, 2, 4, 6):
        world.drawings.offer(bundle(version))
    versions = []
    while (ref := world.advance()) is not None:
        versions.append(int(ref.split()[1]))
        world.end()
    assert versions == [0, 0, 6, 6], "the others are drawn at the end"


def test_work_that_comes_meanwhile_waits_behind_the_picture_and_prefers_others(world):
    world.drawings.offer(bundle(0))
    world.advance()
    first = bundle(0)
    for worker in world.pool.workers:
        worker.bundle = first
    assert world.pool.free_worker(first) is world.pool.workers[0]
    world.pool.workers[0].calls = [Call((0, 0), first, "a", None, 0.0)] * 2
    assert world.pool.free_worker(first) is world.last
    world.last.calls = [Call((0, 1), first, "b", None, 0.0)]  # for longer than any deadline
    assert world.pool._doing(world.last).startswith("drawing prompt 1 after 0 steps for")
    world.pool.workers[0].calls = []
    assert world.pool.collect() == ([], []) and world.killed == [], "its time has not begun"
    world.end()
    assert time.monotonic() - world.last.calls[0].started < 5, "now it has"


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_worker_lost_with_a_picture_is_replaced_at_no_charge(world, monkeypatch, how):
    world.drawings.offer(bundle(0))
    world.advance()
    world.last.calls = [Call((3, 1), bundle(0), "b", None, time.monotonic())]
    if how == "dies":
        world.end(ActorDiedError())
    else:
        assert world.last.drawing is not None
        world.last.drawing.started = -1e9
        assert world.drawings.collect(), "it is a move: what waited behind it begins"
    assert len(world.killed) == 1 and world.last.died_on == [] and world.last.drawing is None
    assert world.pool.collect() == ([], [(3, 1)]), "what it had beside is rolled out again"
    (line,) = world.told
    assert line.startswith(
        "preview.prompts: prompt 1 after 0 steps is not drawn while training (roll"
    )
    assert (
        line.endswith("it is drawn at the end") and ("died" if how == "dies" else "timed") in line
    )
    world.last.loaded = 0
    assert world.advance() == "stats 0 1", "the others are drawn"


def test_after_three_failures_the_rest_is_left_for_the_end(world):
    for version in (0, 2):
        world.drawings.offer(bundle(version))
    for _ in range(3):
        assert world.advance() is not None
        world.end(ActorDiedError())
        world.last.loaded = 0
    world.drawings.offer(bundle(4))
    assert world.advance() is None and world.taken == []
    assert world.told[-1].endswith("what is left is drawn at the end")


def test_a_rewind_forgets_what_is_under_way_and_draws_nothing_twice(world):
    world.drawings.offer(bundle(0))
    world.advance()
    world.drawings.rewind({(2, 0)})
    world.end()
    assert world.taken == [] and world.told == []
    world.drawings.offer(bundle(2))
    assert world.advance() == "stats 2 1"


def test_learners_are_busy_for_as_long_as_their_last_step_took(monkeypatch):
    now = 100.0
    monkeypatch.setattr("dopsd.coordinator.learner_group.time.monotonic", lambda: now)
    learners = LearnerGroup()
    learners.train(0)
    assert learners.busy_until() == -math.inf, "nothing is known yet"
    now = 104.0
    learners.published()
    assert learners.busy_until() == -math.inf, "between two steps"
    learners.wait_for(1)
    assert learners.busy_until() == 108.0, "they still have to be given it"
    now = 110.0
    learners.train(1)
    now = 111.0
    assert learners.busy_until() == 114.0
