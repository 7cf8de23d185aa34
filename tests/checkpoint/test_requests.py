"""What others want of a run's checkpoints."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dopsd.checkpoint import requests
from dopsd.checkpoint.requests import CheckpointRequests


@pytest.fixture
def draining(monkeypatch) -> dict[str, float]:
    """Nodes that will be taken away; the run is on `ours` and `another`."""
    nodes: dict[str, float] = {}
    monkeypatch.setattr(requests, "draining_nodes", lambda: dict(nodes))
    monkeypatch.setattr(requests, "nodes_of_job", lambda: {"ours", "another"})
    return nodes


def test_a_node_of_the_run_that_drains_asks_once(draining, tmp_path: Path) -> None:
    told: list[str] = []
    asked = CheckpointRequests(str(tmp_path), None, lambda error: None, told.append)
    draining["theirs"] = 0.0
    asked.look_at_nodes()
    assert not asked.asked and not told
    draining["ours"] = time.time() + 30.4
    asked.look_at_nodes()
    assert asked.asked and told == [
        "node ours is taken away in 30 s: a checkpoint is being saved first"
    ]
    asked.asked = False
    asked.look_at_nodes()
    assert not asked.asked, "it was saved"
    draining["another"] = 0.0
    asked.look_at_nodes()
    assert asked.asked and told[1].startswith("node another is taken away soon")


def test_it_looks_without_being_asked_to(draining, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(requests, "_LOOK_SECONDS", 0.01)
    asked = CheckpointRequests(str(tmp_path), None, lambda error: None)
    asked.watch_nodes()
    try:
        draining["ours"] = 0.0
        until = time.monotonic() + 10
        while not asked.asked:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        asked.end()
