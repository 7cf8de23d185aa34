"""What a command claims, and what it waits for, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dopsd.errors import ResourceError
from dopsd.ray_cluster import packing, reservation
from dopsd.ray_cluster.placement import Node, Role
from dopsd.ray_cluster.reservation import Reservation

LEARNER, ENCODER = Role("learner", 2, 1.0, 1.0), Role("encoder", 1, 1.0, 1.0)


@pytest.fixture
def gangs(monkeypatch) -> list:
    """What had to be free together, with what was claimed meanwhile."""
    asked: list = []

    class Gang:
        def __init__(self, roles) -> None:
            asked.append(list(roles))

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            pass

        def is_placed(self, seconds: float) -> bool:
            return "large" not in {role.name for role in asked[-1]}

    resources = {"CPU": 8.0, "GPU": 4.0}
    monkeypatch.setattr(reservation, "Gang", Gang)
    monkeypatch.setattr(reservation, "is_private", lambda: False)
    monkeypatch.setattr(reservation, "cluster_resources", lambda: resources)
    monkeypatch.setattr(reservation, "nodes", lambda: [Node({"CPU": 4.0, "GPU": 2.0})] * 2)
    two = [packing.Node(name, 4.0, 2.0) for name in "ab"]
    monkeypatch.setattr(reservation, "_staying_nodes", lambda: two)
    answer = {"holds": True, "since": 1.0, "ahead": [], "missing": None}
    monkeypatch.setattr(Reservation, "_beat", lambda self: answer)
    return asked


def test_a_claim_that_grows_waits_for_room(gangs) -> None:
    with Reservation("a run", print) as place:
        place.wait(lambda: [LEARNER], 1.0)
        place.wait(lambda: [LEARNER], 1.0)
        assert gangs == [[LEARNER]]
        place.wait(lambda: [LEARNER, ENCODER], 1.0)
        assert gangs[1:] == [[LEARNER, ENCODER]]


def test_what_comes_later_is_claimed_already(gangs) -> None:
    with Reservation("a run", print) as place:
        place.wait(lambda: [LEARNER], 1.0, later=lambda: [ENCODER])
        place.wait(lambda: [ENCODER], 1.0, keep=False)
        assert gangs == [[LEARNER]]
        assert place._claim.all_roles == (LEARNER, ENCODER)


def test_nodes_that_have_it_in_pieces_are_told(gangs) -> None:
    large = Role("large", 2, 2.0, 1.5)
    with (
        Reservation("a run", print) as place,
        pytest.raises(ResourceError, match=r"no room for learner 1 of 1: needs 1 CPU and 1 GPU$"),
    ):
        place.wait(lambda: [large, Role("learner", 2, 1.0, 1.0, min_workers=1)], 0.0)


def test_whatever_the_queue_raises_it_did_not_answer(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("shut down")

    monkeypatch.setattr(reservation.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(reservation, "_queue", fails)
    with Reservation("a run", print) as place:
        assert place._beat() is None
        place._queue = SimpleNamespace(leave=SimpleNamespace(remote=fails))
