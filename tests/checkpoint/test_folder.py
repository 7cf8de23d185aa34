"""Checkpoint folders: complete or absent, locally and on S3."""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import Any

import pytest

from dopsd.checkpoint.folder import (
    MANIFEST,
    newest_good,
    prune,
    read_checkpoint,
    remove_unfinished,
    steps,
    write_checkpoint,
)
from dopsd.errors import CheckpointError
from dopsd.files import storage
from dopsd.files.seal import SEAL, sealed, unsealed

FILES = {"student.safetensors": b"s" * 100, "optimizer.safetensors": b"o" * 50}


def write(root: str, step: int, files=FILES) -> str:
    return write_checkpoint(
        root,
        files,
        step=step,
        policy_versions=(step,),
        config={"a": 1},
        data="f",
        plan="p",
        learners=2,
    )


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "checkpoints")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/checkpoints"


def test_a_checkpoint_reads_back(root):
    path = write(root, 12)
    found = read_checkpoint(path)
    assert found.files == FILES and found.step == 12
    assert found.manifest.policy_versions == (12,) and found.manifest.learners == 2
    assert newest_good(root) == (found, [])


DAMAGE = {
    "truncated": (b"s" * 99, "student.safetensors: 99 bytes, the manifest says 100"),
    "one bit": (b"s" * 99 + b"r", "student.safetensors: damaged, its SHA-256 is not"),
    "missing": (None, "student.safetensors: missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_refused_by_name_and_the_older_one_used(root, kind):
    write(root, 10)
    place = storage.join(write(root, 20), "student.safetensors")
    payload, message = DAMAGE[kind]
    storage.remove(place)
    if payload is not None:
        storage.write_bytes(place, payload)
    found, refused = newest_good(root)
    assert found is not None and found.step == 10
    assert len(refused) == 1 and f"step-000020/{message}" in refused[0]


def test_one_that_cannot_be_read_hides_no_older_one(tmp_path, monkeypatch):
    root, honest = str(tmp_path), storage.read_bytes
    write(root, 10)
    write(root, 20)

    def refusing(words: str):
        def read(path: str, *span: int) -> bytes:
            if words in path:
                raise PermissionError(f"no permission: {path}")
            return honest(path, *span)

        monkeypatch.setattr(storage, "read_bytes", read)

    refusing("step-000020/optimizer")
    found, refused = newest_good(root)
    assert found is not None and found.step == 10 and "no permission: " in refused[0]
    # Of none that is good it may be the good one: nothing begins anew because of it.
    refusing("optimizer")
    with pytest.raises(PermissionError, match="step-000020"):
        newest_good(root)


def test_what_was_not_committed_is_removed_and_nothing_else(tmp_path):
    root = str(tmp_path)
    write(root, 1)
    os.remove(storage.join(write(root, 2), MANIFEST))
    remove_unfinished(root, 1)
    remove_unfinished(root, 2)
    assert steps(root) == [1]


def test_torn_foreign_and_misplaced_ones_are_refused(tmp_path):
    root = str(tmp_path)
    path = write(root, 1)
    os.remove(storage.join(write(root, 2), MANIFEST))
    text = storage.read_bytes(storage.join(path, MANIFEST))
    values = unsealed(json.loads(text))
    for step, manifest in (
        (3, text),
        (4, b"{"),
        (5, json.dumps({**values, "format": "pytorch"}).encode()),
        (6, sealed({**values, "step": 6, "torch": 3})),
    ):
        storage.write_bytes(storage.join(root, f"step-{step:06d}", MANIFEST), manifest)
    found, refused = newest_good(root)
    assert found is not None and found.step == 1
    assert [line.split("/")[-1].partition(": ")[2][:22] for line in reversed(refused)] == [
        "incomplete, it has no ",
        "says step 1, but lies ",
        "not a checkpoint of th",
        "not a checkpoint of th",
        "not a checkpoint of th",
    ]


OTHERS: dict[str, tuple[Any, str]] = {
    "a list": ([], "format: not dopsd-checkpoint"),
    "an older format": (
        {"format_version": 1},
        "format_version: 1, this dopsd reads 2",
    ),
    "a field changed by hand": (
        {"step": 20, "learners": 3},
        "damaged or changed by hand",
    ),
    "a negative size": ({"files": {"a": {"bytes": -1, "sha256": "0" * 64}}}, "files.a.bytes: "),
    "no digest": ({"files": {"a": {"bytes": 1, "sha256": "0"}}}, "files.a.sha256: "),
    "no learner": ({"learners": 0}, "learners: "),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_manifest_that_is_none_of_ours_hides_no_older_one(tmp_path, kind):
    root, (changes, message) = str(tmp_path), OTHERS[kind]
    write(root, 10)
    file = storage.join(write(root, 20), MANIFEST)
    values = json.loads(storage.read_bytes(file))
    content = json.dumps(changes).encode()
    if isinstance(changes, dict):
        rest = {key: value for key, value in values.items() if key != SEAL}
        by_hand = json.dumps(values | changes).encode()
        content = by_hand if "by hand" in kind else sealed(rest | changes)
    storage.write_bytes(file, content)
    found, refused = newest_good(root)
    assert found is not None and found.step == 10
    assert len(refused) == 1 and f"{file}: " in refused[0] and message in refused[0]


def loop(path: str) -> None:
    os.symlink(path, path)


def unix_socket(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY)  # its name may be longer than sockets take
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)


@pytest.mark.parametrize("name", [MANIFEST, "student.safetensors", ""])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, loop, unix_socket, lambda path: None])
def test_something_else_in_place_of_a_file_hides_no_older_one(tmp_path, make, name):
    root = str(tmp_path)
    write(root, 10)
    place = storage.join(write(root, 20), name).rstrip("/")
    if os.path.isdir(place):
        shutil.rmtree(place)
    else:
        os.unlink(place)
    make(place)
    found, refused = newest_good(root)
    assert found is not None and found.step == 10
    assert len(refused) == (os.path.lexists(place) or bool(name)) and "\n" not in "".join(refused)
    write(root, 30)
    prune(root, 30, keep_last=3, keep_every=0)
    found, _ = newest_good(root)
    assert found is not None and found.step == 30


def test_what_does_not_fit_is_refused(tmp_path):
    root = str(tmp_path)
    write(root, 1)
    write(root, 2)
    found, refused = newest_good(root, lambda m: "of another run" if m.step == 2 else None)
    assert found is not None and found.step == 1 and "step-000002: of another run" in refused[0]


def test_a_step_written_again_replaces_the_first(root):
    write(root, 3)
    path = write(root, 3, {"student.safetensors": b"new"})
    assert read_checkpoint(path).files == {"student.safetensors": b"new"}


def test_a_failed_write_leaves_no_checkpoint(tmp_path, monkeypatch):
    root = str(tmp_path)
    write(root, 1)
    honest = storage.write_bytes

    def full(path, data, durable=False):
        if "optimizer" in path:
            raise OSError(28, "No space left on device")
        honest(path, data, durable)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(root, 2)
    monkeypatch.setattr(storage, "write_bytes", lambda p, d, durable=False: honest(p, d[:-1]))
    with pytest.raises(CheckpointError, match="does not read back"):
        write(root, 3)
    found, refused = newest_good(root)
    assert found is not None and found.step == 1 and len(refused) == 2


def test_pruning_keeps_the_newest_and_every_nth(root):
    for step in (10, 20, 30, 40, 50, 60):
        write(root, step)
    storage.remove(storage.join(root, "step-000040", MANIFEST))
    assert prune(root, 60, keep_last=2, keep_every=30) == ([10, 20, 40], [])
    assert steps(root) == [30, 50, 60]
    storage.remove(storage.join(root, "step-000060", MANIFEST))
    assert prune(root, 50, keep_last=1, keep_every=0) == ([30], [])
    assert steps(root) == [50, 60], "the newest may still be being written"


def test_a_damaged_newer_one_does_not_cost_the_good_ones(tmp_path):
    root = str(tmp_path)
    for step in (10, 20):
        write(root, step)
    storage.write_bytes(storage.join(root, "step-000020", "student.safetensors"), b"torn")
    write(root, 15)  # the run went on from 10
    assert prune(root, 15, keep_last=1, keep_every=0) == ([10], [])
    found, refused = newest_good(root)
    assert found is not None and found.step == 15 and "step-000020" in refused[0]
    assert prune(root, 12, keep_last=1, keep_every=0) == ([], []), "nothing without a new one"


def test_files_of_others_stay_beside_ours_and_are_told(root):
    write(root, 10)
    write(root, 20)
    mine = ["notes.txt", "step-000010/extra.bin", "step-000015/model.pt"]
    for name in mine:
        storage.write_bytes(storage.join(root, name), b"mine")
    assert prune(root, 20, keep_last=1, keep_every=0) == ([10], ["step-000010/extra.bin"])
    with pytest.raises(CheckpointError, match=r"step-000015 holds model.pt and is no checkpoint"):
        write(root, 15)
    write(root, 20, {"student.safetensors": b"new"})
    assert newest_good(root)[0].files == {"student.safetensors": b"new"}
    found = {name for name, _ in storage.list_files(root)}
    ours = {".dopsd.json", "step-000020/checkpoint.json", "step-000020/student.safetensors"}
    assert found == ours | set(mine)


def test_a_damaged_record_of_one_step_is_written_over_and_half_written_files_go(tmp_path):
    root = str(tmp_path)
    path = write(root, 10)
    os.remove(storage.join(path, MANIFEST))
    for name in ("policy-000009.teacher.safetensors", "ema.safetensors.tmp-12-0123abcd"):
        storage.write_bytes(storage.join(path, name), b"half")
    storage.write_bytes(storage.join(path, "policy-notes.txt"), b"mine")
    write(root, 10, {"student.safetensors": b"new"})
    assert storage.names(path) == {"checkpoint.json", "student.safetensors", "policy-notes.txt"}
