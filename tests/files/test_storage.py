"""Files and folders by name, whatever characters it has, on local disk and S3."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopsd.data.prepare.folder import listed_files, owned, remove_shards
from dopsd.errors import StorageError
from dopsd.files import pieces, storage

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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_named_and_leaves_what_was_there(small_disk: Path) -> None:
    path = small_disk / "run" / "lora.safetensors"
    storage.write_bytes(str(path), b"old")
    ways = (
        lambda: storage.write_bytes(str(path), b"x" * 2**17),
        lambda: _stream(str(path)),
    )
    for write in ways:
        told = rf"^{path}: No space left on device \(ENOSPC\); disk {small_disk}: 0"
        with pytest.raises(StorageError, match=told):
            write()
        assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


def _stream(path: str) -> None:
    with pieces.streamed_file(path) as file:
        for _ in range(32):
            file.write(b"x" * 2**12)


def test_what_a_local_disk_refuses_is_one_line_with_path_and_cause(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    os.mkfifo(tmp_path / "pipe")
    long = tmp_path / ("x" * 300)
    for refused, words in (
        (lambda: storage.write_bytes(str(file / "a"), b""), r"file: .*\((EEXIST|ENOTDIR)\)"),
        (lambda: storage.write_bytes(str(long), b""), r"\(ENAMETOOLONG\)"),
        (lambda: storage.write_bytes(str(tmp_path), b""), r"\(EISDIR\)"),
        (lambda: storage.read_bytes(str(loop)), r"loop: .*\(ELOOP\)"),
        (lambda: storage.read_bytes(str(tmp_path)), "a folder, allowed: a regular file"),
        (lambda: storage.read_bytes(str(tmp_path / "pipe")), "a pipe, allowed: a regular file"),
        (lambda: storage.open_input(str(tmp_path / "pipe")), "a pipe, allowed: a regular file"),
        (lambda: storage.open_binary("/dev/zero"), "a device, allowed: a regular file"),
    ):
        with pytest.raises(StorageError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "gone"))


def test_what_the_writer_of_a_file_reads_has_errors_of_its_own(tmp_path: Path) -> None:
    with (
        pytest.raises(PermissionError, match="source"),
        pieces.whole_file(str(tmp_path / "target")),
    ):
        raise PermissionError(errno.EACCES, "denied", "source")
    assert os.listdir(tmp_path) == []


def test_what_is_set_aside_replaces_nothing(root: str) -> None:
    path = storage.join(root, "lines.jsonl")
    for number in range(3):
        storage.write_bytes(path, str(number).encode())
        storage.set_aside(path)
    found = {name: storage.read_bytes(storage.join(root, name)) for name in files(root)}
    assert found == {
        "lines.jsonl.damaged": b"0",
        "lines.jsonl.damaged-2": b"1",
        "lines.jsonl.damaged-3": b"2",
    }


def test_what_others_write_on_s3_is_seen_at_once(bucket: str, tmp_path: Path) -> None:
    """By another client than ours, whose listings nobody tells ours of."""
    import boto3

    folder = f"{bucket}/{tmp_path.name}/seen"
    storage.write_bytes(f"{folder}/one", b"1")
    assert files(folder) == ["one"] and not storage.exists(f"{folder}/two")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name, _, key = f"{folder}/two".removeprefix("s3://").partition("/")
    client.put_object(Bucket=name, Key=key, Body=b"22")
    assert storage.exists(f"{folder}/two") and storage.size(f"{folder}/two") == 2
    client.put_object(Bucket=name, Key=key, Body=b"333")
    assert storage.size(f"{folder}/two") == 3
