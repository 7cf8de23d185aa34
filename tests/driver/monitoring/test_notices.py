"""What a run tells people stays in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.notices import Notices
from dopsd.driver.monitoring.progress import Report
from dopsd.errors import WorkerError


def test_what_was_told_stays_with_why_it_ended(tmp_path: Path) -> None:
    shown: list[object] = []
    (tmp_path / "notices.txt").write_text("earlier\n")
    notices = Notices(str(tmp_path), lambda phase, event: shown.append(event))
    with pytest.raises(WorkerError), notices as show:
        show("train", RunStatus(1, 8, notices=["a"]))
        show("train", RunStatus(2, 8, notices=["a", "b\n\x1b[31mc"]))
        show("train", Report(["d"]))
        show("train", "a phase")
        raise WorkerError("out of memory")
    earlier, *lines = (tmp_path / "notices.txt").read_text().splitlines()
    assert earlier == "earlier" and len(shown) == 4
    assert [line.partition("  ")[2] for line in lines] == [
        "a",
        "b\\n\\x1b[31mc",
        "d",
        "ended: out of memory",
    ]


def test_a_run_with_nothing_to_tell_leaves_no_file(tmp_path: Path) -> None:
    with Notices(str(tmp_path), lambda phase, event: None) as show:
        show("train", RunStatus(1, 8))
    assert list(tmp_path.iterdir()) == []
