"""Workers whose node will be taken away: what they train goes on elsewhere, from where it was, and
nobody has failed. Real actors that compute nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from dopsd.driver.monitoring.progress import Event
from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from dopsd.library.workers import pool
from dopsd.ray_cluster import lost_nodes
from tests.library.test_training import STEPS, check_done, done_lines, start

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_what_leaves_gives_back_what_it_trains_and_no_step_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_NEWS_SECONDS", 0.02)
    names = [f"pets/{number:02}" for number in range(12)]
    done, drained = 0, False

    def show(event: Event) -> None:
        nonlocal done
        done += done_lines(event)

    def draining() -> dict[str, float]:
        """Once, when some are done, this machine is said to go."""
        nonlocal drained
        if drained or done < 4:
            return {}
        drained = True
        return {ray.get_runtime_context().get_node_id(): 0.0}

    monkeypatch.setattr(lost_nodes, "draining_nodes", draining)
    summary = start(tmp_path, names, show, seconds=0.1)
    assert drained and summary.counts.done == len(names) and summary.counts.conserved
    check_done(tmp_path, names)
    entries = read_ledger(LibraryFolder(f"{tmp_path}/library").file(LEDGER))
    lost = [entry for entry in entries if entry["event"] == "lost"]
    assert 1 <= len(lost) <= 3
    assert {entry["reason"] for entry in lost} == {"its node will be taken away"}
    for entry in lost:
        own = [e for e in entries if e.get("concept") == entry["concept"]]
        at = own.index(entry)
        first = next(e for e in own if e["event"] == "begin")
        saved, again = own[at - 1], own[at + 1]
        assert (saved["event"], again["event"]) == ("saved", "begin")
        assert 0 < again["step"] == saved["step"] < STEPS, "no step is trained twice"
        assert again["attempt"] == 1 and again["worker"] != first["worker"]
    assert not any(story.tries.failures for story in fold(entries).values())
