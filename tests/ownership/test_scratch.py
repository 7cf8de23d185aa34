"""Scratch folders go with their process, and after a kill with the next of their kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dopsd.files import storage
from dopsd.ownership.scratch import OWNER_FILE, is_scratch, scratch_folder, temporary_folder

KILLED = """
import os, sys
from dopsd.ownership.scratch import scratch_folder
with scratch_folder(sys.argv[1], ".pictures-") as path:
    open(path + "/half.png", "w").close()
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_what_the_next_one_clears(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert is_scratch(str(left)) and (left / "half.png").exists()
    mine = tmp_path / ".pictures-mine"
    mine.mkdir()
    (mine / "1.png").touch()
    with scratch_folder(str(tmp_path), ".pictures-") as path:
        assert not left.exists() and mine.exists() and os.path.isdir(path)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("change", [{"pid": os.getpid()}, {"place": "another"}, {"pid": "x"}])
def test_scratch_of_the_living_and_of_other_machines_stays(tmp_path: Path, change: dict) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    owner = json.loads((left / OWNER_FILE).read_text()) | change
    if owner["pid"] == os.getpid():
        with scratch_folder(str(tmp_path), ".other-") as living:
            owner = json.loads(Path(living, OWNER_FILE).read_text())
    (left / OWNER_FILE).write_text(json.dumps(owner))
    with scratch_folder(str(tmp_path), ".pictures-") as living:
        with scratch_folder(str(tmp_path), ".pictures-"):
            assert os.path.isdir(living)
        assert left.exists()


def test_a_link_is_no_scratch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    (left,) = (tmp_path / "a").iterdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".pictures-x").symlink_to(left)
    with scratch_folder(str(tmp_path / "b"), ".pictures-"):
        assert left.exists()


def test_on_s3_and_in_the_folder_for_temporary_files(bucket: str, tmp_path: Path) -> None:
    parent = f"{bucket}/{tmp_path.name}"
    with scratch_folder(parent, ".prior.") as path:
        storage.write_bytes(storage.join(path, "1.png"), b"")
        assert len(storage.list_files(parent)) == 2
    assert storage.list_files(parent) == []
    with temporary_folder("test") as path:
        assert is_scratch(path) and os.stat(path).st_mode & 0o777 == 0o700
    assert not os.path.exists(path)
