"""What counts as a move, and as a sign of life: nobody is ended for what others hold up."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from dopsd.checkpoint import manager
from dopsd.checkpoint.parts import CheckpointParts
from dopsd.coordinator import coordinator as module
from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.status import stalled
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.run_folder.log import RunLog
from tests.helpers.parts import InProcessWriter
from tests.helpers.tiny import make_config

PARTS = CheckpointParts(InProcessWriter())
LIMIT = 2.5
"""``timeouts.step``: two looks at a write that hangs fit into it."""


@pytest.fixture
def hung(monkeypatch):
    door, begun = threading.Event(), []

    def write(root, files, *, step, **said):
        begun.append(step)
        assert door.wait(60)

    monkeypatch.setattr(manager, "write_checkpoint", write)
    monkeypatch.setattr(manager, "prune", lambda *arguments: ([], []))
    monkeypatch.setattr(module, "checkpoint_files", lambda *arguments: ({}, (), PARTS))
    yield begun
    door.set()


@pytest.fixture
def coordinator(tmp_path) -> Coordinator:
    """That has not started anything."""
    config = make_config(
        "base",
        run={"folder": str(tmp_path)},
        learner={"steps": 10},
        checkpoint={"every_steps": 2},
        timeouts={"step": LIMIT},
    )
    roles = resolve_roles(config, 0.0)
    made = Coordinator(config, roles, None, lambda step: 1, RunLog(str(tmp_path)))
    made._learners.attempt = 1
    return made


@pytest.mark.parametrize("before", [True, False], ids=["the one before hangs", "it hangs"])
def test_the_wait_for_a_write_that_hangs_is_bounded_and_a_sign_of_life(hung, coordinator, before):
    if before:
        coordinator.checkpoints.save(8, {}, ())
    longest = 0.0
    saving = threading.Thread(target=coordinator.save, args=(1, 10, {}), daemon=True)
    began = time.monotonic()
    saving.start()
    while saving.is_alive() and time.monotonic() - began < 3 * LIMIT:
        longest = max(longest, time.monotonic() - coordinator._progress)
        time.sleep(0.05)
    assert time.monotonic() - began < 1.7 * LIMIT, "one deadline for both"
    assert longest < 0.8 * LIMIT, "nobody takes the learners for hung"
    assert hung == ([8] if before else [10])
    assert len(coordinator.checkpoints.notices) == before


def test_the_end_of_a_picture_is_a_move(coordinator):
    """Done, failed, or its worker replaced: a roll-out that waited behind it begins."""

    def collect() -> bool:
        coordinator._stopping = True  # after this round
        return True

    dispatcher = coordinator._dispatcher
    coordinator._dispatcher = SimpleNamespace(
        advance=lambda *arguments: True, pending=lambda: [], collect=lambda: False
    )
    coordinator._drawings = SimpleNamespace(
        advance=lambda *arguments: None, pending=lambda: [], collect=collect
    )
    coordinator._progress -= 1000
    parts = dispatcher, coordinator._reader, coordinator._learners
    assert stalled(3, time.monotonic() - coordinator._progress, *parts)
    coordinator._drive_pools()
    assert stalled(3, time.monotonic() - coordinator._progress, *parts) is None
