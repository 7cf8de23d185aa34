"""Masks: read from every kind of source, cut as their pictures are, part of what a sample is."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dopsd.data.manifest import PrepareSettings
from dopsd.data.masks import check_masks
from dopsd.data.plan import MicroBatch, RowRef
from dopsd.data.prepare.shards import Inspector, write_shard
from dopsd.data.read import MASK, READ_SCHEMA, ReadSpec, RowGroups, read_micro_batch
from dopsd.data.schema import SCHEMA
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import Source, pack_row, unpack_row
from dopsd.errors import ConfigError
from tests.data.samples import SMALL, picture, png, write_jsonl
from tests.helpers.tiny import make_config

SETTINGS = PrepareSettings(**SMALL)


def half(width: int = 32, height: int = 32) -> Image.Image:
    """White on its left half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def shard(source: Path, folder: Path) -> tuple[Source, dict[str, str]]:
    """(the source as listed, with what is wrong with its samples; digests of the others) in one
    shard with a row group for each sample."""
    listed = read_source(str(source), SETTINGS)
    inspector, groups = Inspector.of(SETTINGS), []
    for row in listed.rows:
        if row.problem is None:
            found = inspector.inspect(row)
            row.problem = found.reason or None
        if row.problem is None:
            groups.append((found.bucket, [unpack_row(pack_row(row))]))
    return listed, write_shard(str(folder / "shard-00000.parquet"), groups)


def masks(folder: Path, count: int, *, wanted: bool = True) -> list[np.ndarray | None]:
    """Masks of the first samples as training reads them."""
    groups = RowGroups(str(folder), ReadSpec(images=False, masks=wanted))
    read: list[np.ndarray | None] = []
    for number in range(count):
        ref = RowRef("shard-00000.parquet", number, 0)
        values = read_micro_batch(MicroBatch(0, 0, 0, "", (ref,), (0,), (0,), 1), groups, 0)
        pa.Table.from_pylist([values], schema=READ_SCHEMA)
        size = (values["height"], values["width"])
        data = values[MASK]
        read.append(None if data is None else np.frombuffer(data, np.uint8).reshape(size))
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide picture with a mask, a picture without one, and every kind of bad mask."""
    source = tmp_path / "set"
    source.mkdir()
    bad = {"size": half(16, 32), "clear": Image.new("RGBA", (32, 32)), "black": half(1, 32)}
    bad["black"] = Image.new("L", (32, 32), 0)
    for name in ("b", *bad):
        picture(0).save(source / f"{name}.png")
        (source / f"{name}.txt").write_text("x")
    picture(0, 96, 32).save(source / "a.png")
    half(96, 32).save(source / "a.mask.webp", lossless=True)
    (source / "a.txt").write_text("x")
    for name, mask in bad.items():
        mask.save(source / f"{name}.mask.png")
    return source


def test_a_mask_is_cut_as_its_picture_is(folder: Path, tmp_path: Path) -> None:
    listed, digests = shard(folder, tmp_path)
    problems = {row.where: row.problem for row in listed.rows if row.problem}
    assert problems == {
        "size.png": "bad mask: 16x32 pixels, allowed: 32x32 as its picture",
        "clear.png": "bad mask: transparent, allowed: white where the loss counts, black elsewhere",
        "black.png": "bad mask: all black in what 32x32 keeps, so that nothing would count",
    }
    assert [*digests] == ["a", "b"]
    first, second = masks(tmp_path, 2)
    assert second is None and first is not None
    height, width = first.shape
    assert width > height, "its bucket is wide"
    assert first[:, : width // 2 - 2].min() > 250 and first[:, width // 2 + 2 :].max() < 5
    assert masks(tmp_path, 2, wanted=False) == [None, None]


def test_a_mask_is_part_of_what_a_sample_is(folder: Path, tmp_path: Path) -> None:
    _, before = shard(folder, tmp_path / "one")
    half(96, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a.mask.webp")
    _, after = shard(folder, tmp_path / "two")
    assert before["a"] != after["a"] and before["b"] == after["b"]
    for name in ("a.mask.webp", "size.mask.png", "clear.mask.png", "black.mask.png"):
        (folder / name).unlink()
    _, without = shard(folder, tmp_path / "three")
    assert without["b"] == before["b"] and len(without) == 5
    # Shards without masks are what they were before there were any.
    assert pq.read_schema(tmp_path / "three/shard-00000.parquet").names == SCHEMA.names


def test_lists_and_tars_name_masks(folder: Path, tmp_path: Path) -> None:
    rows = [{"image": "set/a.png", "mask": "set/a.mask.webp", "caption": "x"}]
    rows += [{"image": "set/b.png", "mask": "set/gone.png", "caption": "x"}]
    listed, digests = shard(write_jsonl(tmp_path / "set.jsonl", rows), tmp_path / "list")
    assert [*digests] == ["set/a"] and masks(tmp_path / "list", 1)[0] is not None
    assert str(listed.rows[1].problem).startswith("missing image: no such file")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("a.png", "a.txt", "a.mask.webp", "b.png", "b.txt"):
            tar.add(folder / name, name)
    _, digests = shard(tmp_path / "set.tar", tmp_path / "tar")
    assert len(digests) == 2 and [m is None for m in masks(tmp_path / "tar", 2)] == [False, True]
    table = {"image": [png(picture(0))], "mask": [png(half())], "text": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    (group,) = read_source(str(tmp_path / "set.parquet")).groups
    ((row, found),) = Inspector.of(SETTINGS).unpack(group, str(tmp_path / "pictures"))
    assert not found.reason and row.mask is not None
    digests = write_shard(str(tmp_path / "table/shard-00000.parquet"), [(found.bucket, [row])])
    assert digests and np.array_equal(masks(tmp_path / "table", 1)[0], np.asarray(half()))


def test_a_mask_beside_a_listed_picture_is_told_of(folder: Path) -> None:
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "x"}])
    problems = {row.where: row.problem for row in read_source(str(folder)).rows}
    assert "metadata.jsonl does not name the picture" in str(problems["a.mask.webp"])


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({}, False),
        ({"method": {"objective": "sft_on_teacher"}}, False),
        ({"method": {"objective": "off_policy", "off_policy_states": "teacher"}}, False),
        ({"method": {"objective": "off_policy"}}, True),
        ({"method": {"objective": "sft"}}, True),
        ({"model": {"family": "flux2_klein"}, "context": {"name": "edit"}}, True),
        ({"data": {"masks": False}}, True),
    ],
)
def test_masks_are_refused_where_pictures_lie_elsewhere(changed, fits) -> None:
    config = make_config("base", source="fused", **changed)
    manifest = SimpleNamespace(masks=2, samples=3)
    if fits:
        check_masks(config, manifest)
        return
    with pytest.raises(ConfigError, match="2 of 3 samples have a mask, but under method"):
        check_masks(config, manifest)
    check_masks(config, SimpleNamespace(masks=0, samples=3))
