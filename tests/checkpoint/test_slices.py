"""Slices of large tensors: any range of them, whoever wrote it, locally and on S3."""

from __future__ import annotations

import pytest
import torch

from dopsd.checkpoint.slices import Slice, SliceReader, write_slices
from dopsd.errors import CheckpointError
from dopsd.files import storage

A, B = torch.randn(100), torch.randn(7)
META = {"step": 3}


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "files")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/files"


def piece(name: str, values: torch.Tensor, start: int, stop: int) -> Slice:
    return Slice(name, start, stop, lambda: values[start:stop])


def write(root: str, number: int, *slices: Slice, meta=META) -> str:
    path = storage.join(root, f"{number}.safetensors")
    record = write_slices(path, slices, meta)
    assert record.bytes == storage.size(path)
    return path


def test_any_range_reads_back_whoever_wrote_it(root):
    paths = [
        write(root, 0, piece("a", A, 0, 33), piece("b[0]", B, 0, 7), piece("c", A, 5, 5)),
        write(root, 1, piece("a", A, 33, 34)),
        write(root, 2, piece("a", A, 34, 100)),
    ]
    reader = SliceReader(paths[::-1])
    assert reader.meta == META and reader.names() == {"a", "b[0]"}
    for start, stop in ((0, 100), (0, 33), (32, 35), (50, 51), (99, 100), (7, 7)):
        assert torch.equal(reader.read("a", start, stop), A[start:stop])
    assert torch.equal(reader.read("b[0]", 2, 7), B[2:])


def test_files_are_safetensors(tmp_path):
    from safetensors.torch import load_file

    path = write(str(tmp_path), 0, piece("a", A.bfloat16(), 10, 20))
    assert torch.equal(load_file(path)["a[10:20]"], A[10:20].bfloat16().float())


def test_what_is_nowhere_is_named(tmp_path):
    root = str(tmp_path)
    reader = SliceReader([write(root, 0, piece("a", A, 0, 10), piece("a", A, 20, 100))])
    with pytest.raises(CheckpointError, match=r"a\[10:30\] is in none"):
        reader.read("a", 5, 30)
    with pytest.raises(CheckpointError, match=r"d\[0:1\]"):
        reader.read("d", 0, 1)


def test_foreign_files_are_refused(tmp_path):
    root = str(tmp_path)
    good = write(root, 0, piece("a", A, 0, 10))
    other = write(root, 1, piece("a", A, 10, 20), meta={"step": 4})
    with pytest.raises(CheckpointError, match=r"1\.safetensors: of another state"):
        SliceReader([good, other])
    storage.write_bytes(other, b"\x80\x02}q\x00." * 20)
    with pytest.raises(CheckpointError, match=r"1\.safetensors: not a file of slices"):
        SliceReader([good, other])


def test_a_write_that_fails_leaves_nothing(root):
    def broken() -> torch.Tensor:
        raise OSError("the device is gone")

    with pytest.raises(OSError, match="gone"):
        write(root, 0, piece("a", A, 0, 10), Slice("b", 0, 5, broken))
    assert storage.names(root) == set()
