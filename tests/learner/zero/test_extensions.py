"""Builds of C++ extensions that a dead or a slow process holds up."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from dopsd.errors import DeadlineError
from dopsd.learner.zero.extensions import build


class Builder:
    """As DeepSpeed's: torch's ``load`` waits for ever while there is a ``lock``."""

    name = "tiny_op"

    def __init__(self, folder: Path) -> None:
        self.lock = folder / self.name / "lock"
        self.built = 0

    def load(self) -> None:
        assert not self.lock.exists(), "torch would wait here"
        self.built += 1


@pytest.fixture
def builder(tmp_path, monkeypatch) -> Builder:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return Builder(tmp_path)


def test_the_lock_of_a_process_that_was_killed_in_a_build_holds_up_nobody(builder):
    builder.lock.parent.mkdir()
    builder.lock.touch()
    build(builder)
    build(builder)
    assert builder.built == 2


def test_another_process_that_builds_for_too_long_is_named(builder):
    build(builder)
    with (builder.lock.parent / "dopsd.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(
            DeadlineError, match=r"tiny_op: another process has been building .* 0.1 s"
        ):
            build(builder, limit=0.1)
    assert builder.built == 1
