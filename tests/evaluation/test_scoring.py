"""Score files: what is read back is whole and in range, or measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.scoring import read_scores
from dopsd.files.seal import sealed

COLUMNS = {"ok": Column("is it", rate=True), "distance": Column("how far", False)}
GOOD = {"key": {"ok": 1.0, "distance": 12.5}}
BAD = {
    "older": json.dumps(GOOD).encode(),
    "cut": sealed({"scores": GOOD})[:-10],
    "changed": sealed({"scores": GOOD}).replace(b"12.5", b"11.5"),
    "a list": sealed({"scores": [1]}),
    "no number": sealed({"scores": {"key": {"ok": "1"}}}),
    "infinite": sealed({"scores": {"key": {"distance": float("inf")}}}),
    "out of range": sealed({"scores": {"key": {"ok": 2}}}),
    "another metric's": sealed({"scores": {"key": {"beauty": 1}}}),
    "NULs": b"\0" * 1000,
    "nested": b"[" * 100_000,
}


def test_numbers_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    assert read_scores(str(path), COLUMNS, pytest.fail) == {}
    path.write_bytes(sealed({"scores": GOOD}))
    assert read_scores(str(path), COLUMNS, pytest.fail) == GOOD


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_not_whole_is_set_aside(tmp_path: Path, kind: str) -> None:
    path, told = tmp_path / "set.json", []
    path.write_bytes(BAD[kind])
    assert read_scores(str(path), COLUMNS, told.append) == {}
    assert len(told) == 1 and str(path) in told[0] and "measured again" in told[0]
    assert (tmp_path / "set.json.damaged").read_bytes() == BAD[kind] and not path.exists()
