"""Tensor files that others write: nothing of them is a checkpoint before the manifest is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dopsd.checkpoint.folder import complete_steps, newest_good, read_checkpoint, write_checkpoint
from dopsd.checkpoint.parts import CheckpointParts, FileRecord
from dopsd.errors import CheckpointError, LeaseLost
from dopsd.files import storage
from dopsd.run_folder.checkpoint_files import MANIFEST, folder_of
from tests.helpers.parts import InProcessWriter

WHOLE = {"student.safetensors": b"s" * 100, "optimizer.safetensors": b"o" * 50}
LARGE = {f"bucket-{'a' * 24}.safetensors": b"b" * 70}
SAID = {"policy_versions": (), "config": {}, "data": "f", "plan": "p", "learners": 2}


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "checkpoints")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/checkpoints"


def written(root: str, step: int, parts: CheckpointParts, **said: Any) -> str:
    return write_checkpoint(root, {}, step=step, parts=parts, **SAID, **said)


def lost() -> None:
    raise LeaseLost("taken over")


def test_a_checkpoint_of_parts_is_what_one_of_bytes_is(root):
    writer = InProcessWriter()
    path = written(root, 1, CheckpointParts(writer, WHOLE, LARGE))
    there = {name for name, _ in storage.list_files(path)}
    assert there == {*WHOLE, *LARGE, MANIFEST}
    assert sorted(writer.checked) == sorted([*WHOLE, *LARGE]), "read back by their names"
    found = read_checkpoint(path)
    assert found.files == WHOLE and found.manifest.large.keys() == LARGE.keys()
    of_bytes = read_checkpoint(write_checkpoint(root, WHOLE, step=2, **SAID))
    assert of_bytes.manifest.files == found.manifest.files


def test_who_lost_the_lease_completes_nothing_and_the_next_one_clears_it(root):
    other = {name: payload * 2 for name, payload in WHOLE.items()}
    with pytest.raises(LeaseLost):
        written(root, 1, CheckpointParts(InProcessWriter(), other, LARGE), may_write=lost)
    names = storage.names(folder_of(root, 1))
    assert names and not names & {*WHOLE, MANIFEST}, "nothing has the name of a checkpoint's file"
    assert newest_good(root)[0] is None
    path = written(root, 1, CheckpointParts(InProcessWriter(), WHOLE))
    assert storage.names(path) == {*WHOLE, MANIFEST} and read_checkpoint(path).files == WHOLE


def test_a_lease_that_is_lost_after_the_files_have_their_names_commits_nothing(tmp_path):
    root, asked = str(tmp_path), []

    def may_write() -> None:
        asked.append(complete_steps(root))
        if len(asked) == len(WHOLE) + 1:
            lost()

    with pytest.raises(LeaseLost):
        written(root, 1, CheckpointParts(InProcessWriter(), WHOLE), may_write=may_write)
    assert asked == [[]] * 3 and complete_steps(root) == []


def test_who_lost_the_lease_between_two_names_gives_no_more_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("dopsd.checkpoint.folder._MOVES", 1)
    asked: list[int] = []

    def may_write() -> None:
        asked.append(1)
        if len(asked) == 2:
            lost()

    with pytest.raises(LeaseLost):
        written(str(tmp_path), 1, CheckpointParts(InProcessWriter(), WHOLE), may_write=may_write)
    assert len(storage.names(folder_of(str(tmp_path), 1)) & WHOLE.keys()) == 1


def test_files_that_only_their_writer_sees_are_no_checkpoint(tmp_path):
    """As on a node whose folder of this name is its own."""

    class Elsewhere(InProcessWriter):
        def write(self, folder: str, refs: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
            yield from super().write(str(tmp_path / "elsewhere"), refs)

        def check(self, folder: str, records: Mapping[str, FileRecord]) -> None:
            super().check(str(tmp_path / "elsewhere"), records)

    root = str(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"bucket-a+\.safetensors: missing"):
        written(root, 1, CheckpointParts(Elsewhere(), large=LARGE))
    assert complete_steps(root) == []


class Overtaken(InProcessWriter):
    """Before its last file a newer attempt writes the same step."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def write(self, folder: str, refs: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
        names = list(refs)
        yield from super().write(folder, {name: refs[name] for name in names[:-1]})
        written(self.root, 1, CheckpointParts(InProcessWriter(), WHOLE))
        yield from super().write(folder, {names[-1]: refs[names[-1]]})


def test_a_superseded_writer_that_ends_late_damages_no_newer_checkpoint(root):
    old = {name: b"old" + payload for name, payload in WHOLE.items()}
    with pytest.raises(LeaseLost):
        written(root, 1, CheckpointParts(Overtaken(root), old), may_write=lost)
    assert read_checkpoint(folder_of(root, 1)).files == WHOLE
    left = storage.names(folder_of(root, 1)) - {*WHOLE, MANIFEST}
    assert len(left) == 1, "what it wrote late lies beside it"
    written(root, 1, CheckpointParts(InProcessWriter(), WHOLE))
    assert storage.names(folder_of(root, 1)) == {*WHOLE, MANIFEST}


def test_a_file_that_is_not_as_it_was_written_costs_the_checkpoint(tmp_path):
    class Torn(InProcessWriter):
        def check(self, folder: str, records: Mapping[str, FileRecord]) -> None:
            storage.write_bytes(storage.join(folder, "student.safetensors"), b"t" * 100)
            super().check(folder, records)

    with pytest.raises(CheckpointError, match=r"student\.safetensors: damaged"):
        written(str(tmp_path), 1, CheckpointParts(Torn(), WHOLE))
    assert complete_steps(str(tmp_path)) == []


def test_what_learners_of_an_attempt_that_is_over_left_is_cleared_and_no_file_of_others(tmp_path):
    root, folder = str(tmp_path / "checkpoints"), tmp_path / "checkpoints" / "step-000001"
    written(root, 9, CheckpointParts(InProcessWriter(), WHOLE))  # there is a record
    folder.mkdir()
    (folder / "learner-00000-of-00002-0a1b2c3d.safetensors").write_bytes(b"left")
    (folder / "student.safetensors.tmp-7-0a1b2c3d").write_bytes(b"left")
    written(root, 1, CheckpointParts(InProcessWriter(), WHOLE))
    assert storage.names(str(folder)) == {*WHOLE, MANIFEST}
    (tmp_path / "checkpoints" / "step-000002").mkdir()
    mine = tmp_path / "checkpoints" / "step-000002" / "student.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"holds student\.safetensors and is no checkpoint"):
        written(root, 2, CheckpointParts(InProcessWriter(), WHOLE))
    assert mine.read_bytes() == b"mine"
