"""Files and folders by name, whatever characters it has, on local disk and S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd import storage
from dopsd.data.prepare.folder import listed_files, owned, remove_shards

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
    storage.remove_tree(moved)
    assert not storage.exists(moved) and files(moved) == []
    storage.remove_tree(moved)
    storage.remove(moved)
    assert all(files(other) == ["1.txt"] for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_old_shards_go_and_files_of_others_stay(root: str, name: str) -> None:
    folder = storage.join(root, name)
    kept = ["mine.parquet", "prior-1/shard-00000.parquet", "shard-00002.parquet"]
    write(folder, *kept, "shard-00000.parquet", "shard-00001.parquet")
    groups = [{"file": f"shard-0000{number}.parquet"} for number in (0, 1)]
    text = json.dumps({"format": "dopsd-shards", "row_groups": groups})
    storage.write_bytes(storage.join(folder, "manifest.json"), text.encode())
    assert remove_shards(owned(folder), listed_files(folder)) == []
    assert files(folder) == [".dopsd.json", "manifest.json", *kept]
