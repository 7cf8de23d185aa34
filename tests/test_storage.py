"""Files and folders by name, whatever characters it has, on local disk and S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopsd import storage
from dopsd.data.prepare.run import _clear

NAMES = ("[V]-cat", "a*", "w?at", "{x,y}")


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return str(tmp_path)


def write(folder: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(folder, name), name.encode())


def files(folder: str) -> list[str]:
    return [name for name, _ in storage.list_files(folder)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(root: str, name: str) -> None:
    folder = storage.join(root, name)
    write(folder, "1.txt", "sub/2.txt")
    # What the name would stand for as a pattern stays.
    others = [storage.join(root, other) for other in ("V-cat", "ab", "what", "x")]
    for other in others:
        write(other, "1.txt")
    assert storage.names(folder) >= {"1.txt"} and files(folder) == ["1.txt", "sub/2.txt"]
    moved = storage.join(root, f"{name}-moved")
    storage.move_folder(folder, moved, last="1.txt")
    assert not storage.exists(folder) and files(moved) == ["1.txt", "sub/2.txt"]
    storage.remove(storage.join(moved, "1.txt"))
    assert files(moved) == ["sub/2.txt"]
    storage.remove(moved)
    assert not storage.exists(moved) and files(moved) == []
    storage.remove(moved)
    assert all(files(other) == ["1.txt"] for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_old_shards_go_and_files_of_others_stay(root: str, name: str) -> None:
    folder = storage.join(root, name)
    kept = ["mine.parquet", "prior-1/shard-00000.parquet"]
    write(folder, *kept, "manifest.json", "shard-00000.parquet", "shard-00001.parquet")
    _clear(folder)
    assert files(folder) == kept
