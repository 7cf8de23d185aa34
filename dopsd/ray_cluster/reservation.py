"""A command's places on a cluster that other runs use too."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.errors import ResourceError
from dopsd.ray_cluster import packing
from dopsd.ray_cluster.cluster_queue import BEAT_SECONDS, LAPSE_SECONDS, Claim, ClusterQueue
from dopsd.ray_cluster.connect import NAMESPACE, cluster_resources, nodes
from dopsd.ray_cluster.gang import Gang
from dopsd.ray_cluster.local import is_private
from dopsd.ray_cluster.placement import Role, shortfall, unplaced, wait_for_resources
from dopsd.ray_cluster.ray_private import draining_nodes
from dopsd.ray_cluster.to_come import most_resources

_NAME = "dopsd-queue-1"
"""The number is that of the messages: drivers that speak others do not share a queue."""
_ANSWER_SECONDS = 10.0
_PATIENCE = 2.0
"""Seconds of waiting of which nobody is told."""
TURN_SECONDS = 86_400.0
Wanted = Callable[[], Sequence[Role]]


class Reservation:
    """The places of ``what``, from the first ``wait`` to the end of the ``with`` block.

    ``tell``: hears in one line what it waits for. ``turn_s``: how long it waits for other runs to
    end, which the config key ``key`` says. On a cluster that nobody can join there are no other
    runs, and nothing is kept. Raises ResourceError for a DOPSD_CLUSTER_MOST that says nothing.
    """

    def __init__(
        self,
        what: str,
        tell: Callable[[str], None],
        turn_s: float = TURN_SECONDS,
        key: str | None = None,
    ) -> None:
        self._tell, self._turn_s = tell, turn_s
        self._limit = f"{key}={turn_s:g}" if key else f"{turn_s:g} s"
        self._owner = uuid.uuid4().hex
        who = f"{what} ({socket.gethostname()}, {os.getpid()})"
        self._claim = Claim(self._owner, who, (), most=most_resources())
        self._queue: Any = None
        self._placed = False
        """All was free together once."""
        self._done = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._heart is not None:
            self._heart.join(timeout=2 * _ANSWER_SECONDS)
        if self._queue is not None and ray.is_initialized():
            with suppress(Exception):  # it ends with the last owner, or its cluster did
                ray.get(self._queue.leave.remote(self._owner), timeout=_ANSWER_SECONDS)

    def wait(
        self, wanted: Wanted, seconds: float, keep: bool = True, later: Wanted = tuple
    ) -> None:
        """Until the turn has come, and then until the cluster is large enough for ``wanted``, for
        ``seconds`` at most; an autoscaler is asked for all of it at once.

        ``wanted`` is asked again as the cluster grows. ``keep``: it is what is claimed from then
        on, with ``later``, what takes places when others of ``wanted`` left theirs. All of it has
        to be free together the first time, and when it has what was not claimed before. Raises
        ResourceError.
        """
        if is_private():
            wait_for_resources(wanted(), cluster_resources, seconds, nodes)
            return
        if not self._claim.holds:
            self._await_turn(wanted, later)
        elif any(role not in self._claim.all_roles for role in wanted()):
            self._placed = False
        self._await_room(wanted, seconds)
        if keep:
            self._claim_now(wanted, later)

    def _claim_now(self, wanted: Wanted, later: Wanted) -> None:
        self._claim = replace(self._claim, roles=tuple(wanted()), later=tuple(later()))

    # -- the turn ----------------------------------------------------------------------------

    def _await_turn(self, wanted: Wanted, later: Wanted) -> None:
        began = heard = time.monotonic()
        told = ""
        while not self._claim.holds:
            self._claim_now(wanted, later)
            answer = self._beat()
            now = time.monotonic()
            if answer is not None and answer["holds"]:
                break
            if answer is not None:
                heard, whom = now, "; ".join(answer["ahead"]) or "the queue was lost with its node"
                if missing := answer.get("missing"):
                    whom += f"; even with all nodes free there is no room for {missing}"
                if now - began >= self._turn_s:
                    raise ResourceError(f"no turn on the cluster ({self._limit}): {whom}")
                if whom != told:
                    told, until = whom, _clock(self._turn_s - (now - began))
                    self._tell(
                        f"Waits for its turn on the cluster until {until} ({self._limit}): {whom}"
                    )
            elif now - heard > LAPSE_SECONDS:
                self._tell(
                    "WARNING: the cluster's queue does not answer: this run begins without a turn, "
                    "and another one may hold what it needs"
                )
                break
            self._done.wait(BEAT_SECONDS)
        self._claim = replace(self._claim, holds=True)
        self._heart = threading.Thread(target=self._beat_on, daemon=True)
        self._heart.start()

    def _beat_on(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> Mapping[str, Any] | None:
        """What the queue answers; None when it does not."""
        if not ray.is_initialized():  # a call would start another one
            return None
        try:
            if self._queue is None:
                self._queue = _queue()
            message = self._claim.to_message()
            answer = ray.get(self._queue.beat.remote(message), timeout=_ANSWER_SECONDS)
        except Exception:  # it ended, or its node did; whatever it is, the heart has to go on
            self._queue = None
            return None
        # Only while it waits: afterwards this is another thread than the one that claims.
        if answer["since"] != self._claim.since:
            self._claim = replace(self._claim, since=answer["since"])
        return dict(answer)

    # -- the room ----------------------------------------------------------------------------

    def _await_room(self, wanted: Wanted, seconds: float) -> None:
        until = time.monotonic() + seconds
        asked: Sequence[Role] = ()
        told = False
        with ExitStack() as stack:
            gang: Gang | None = None
            while True:
                roles = list(wanted())
                problem = shortfall(roles, cluster_resources()) or unplaced(roles, nodes())
                if problem is None and self._placed:
                    return
                if gang is None or roles != asked:
                    stack.close()
                    gang, asked = stack.enter_context(Gang(roles)), roles
                if gang.is_placed(min(1.0, seconds)) and problem is None:
                    self._placed = True
                    return
                problem = problem or _cut(roles) or _held(roles)
                left = until - time.monotonic()
                if left <= 0:
                    raise ResourceError(f"not enough resources after {seconds:g} s: {problem}")
                if not told and seconds - left >= _PATIENCE:
                    told = True
                    self._tell(f"Waits for the cluster until {_clock(left)}: {problem}")
                self._done.wait(min(0.2, left))


def _cut(roles: Sequence[Role]) -> str | None:
    """The cluster would be large enough if it were one node."""
    missing = packing.without_place(roles, _staying_nodes())
    return f"even with all nodes free there is no room for {missing}" if missing else None


def _held(roles: Sequence[Role]) -> str:
    """The cluster would be large enough."""
    free = ray.available_resources()
    names = " + ".join(f"{role.name} {role.needed}" for role in roles)
    return (
        f"others hold what {names} need; free now: {free.get('CPU', 0.0):g} CPU and "
        f"{free.get('GPU', 0.0):g} GPU, in whatever pieces"
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + seconds))


class _QueueActor(ClusterQueue):
    """Ends with the last owner; one whose node died is started again, and waits until every owner
    had time to say what it holds."""

    def __init__(self) -> None:
        lost = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(_staying_nodes, lost)

    def leave(self, owner: str) -> bool:
        if super().leave(owner):
            ray.actor.exit_actor()
        return False


def _staying_nodes() -> list[packing.Node]:
    draining = draining_nodes()
    return [
        packing.Node(
            node["NodeID"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def _queue() -> Any:
    """The cluster's queue. It begins beside the first driver, of a job the head: an actor would
    keep a node that an autoscaler may take away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(_QueueActor)
    return actor.options(
        name=_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        scheduling_strategy=here,
    ).remote()
