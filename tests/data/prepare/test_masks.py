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
from dopsd.data.pictures.masks import check_masks
from dopsd.data.planning.plan import MicroBatch, RowRef
from dopsd.data.prepare.shards import Inspector, write_shard
from dopsd.data.read import MASK, READ_SCHEMA, ReadSpec, RowGroups, read_micro_batch
from dopsd.data.schema import SCHEMA
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import Source, pack_row, unpack_row
from dopsd.errors import ConfigError, DataError
from tests.data.samples import SMALL, picture, png, write_jsonl
from tests.helpers.tiny import make_config

SETTINGS = PrepareSettings(**SMALL)


def half(width: int = 32, height: int = 32) -> Image.Image:
    """White on its left half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def shard(
    source: Path, folder: Path, settings: PrepareSettings = SETTINGS
) -> tuple[Source, dict[str, str]]:
    """(the source as listed, with what is wrong with its samples; digests of the others) in one
    shard with a row group for each sample."""
    listed = read_source(str(source), settings)
    inspector, groups = Inspector.of(settings), []
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
        "size.png": "bad mask: size.mask.png: 16x32 pixels, allowed: 32x32 as its picture",
        "clear.png": "bad mask: clear.mask.png: transparent, allowed: white where the loss counts, "
        "black elsewhere",
        "black.png": "bad mask: black.mask.png: all black in what 32x32 keeps, so that nothing "
        "would count",
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
    assert str(listed.rows[1].problem).startswith("bad mask: gone.png: missing image: no such file")
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
    said = "mask a.mask.webp beside a picture of a list, allowed: its name in the list's column"
    assert str(problems["a.mask.webp"]).startswith(said)


def test_which_of_two_masks_or_references_counts_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(0).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    for name in ("a.mask.png", "a.mask.webp", "b.ref1.png", "b.ref01.webp", "c.mask.png"):
        picture(1).save(tmp_path / name)
    problems = {row.where: row.problem for row in read_source(str(tmp_path)).rows}
    assert problems == {
        "a.png": "several masks: a.mask.png, a.mask.webp; allowed: one",
        "b.png": "several references of one number: b.ref01.webp, b.ref1.png; allowed: one",
        "c.png": None,
    }
    rows = read_source(str(tmp_path), UNMASKED).rows
    assert [row.problem is None for row in rows] == [True, False, True], "masks are left unread"
    with tarfile.open(tmp_path.parent / "set.tar", "w") as tar:
        for name in ("a.png", "a.txt", "a.mask.png", "a.mask.webp"):
            tar.add(tmp_path / name, name)
    (row,) = read_source(str(tmp_path.parent / "set.tar")).rows
    assert "mask.png, .mask.webp, allowed: one picture" in str(row.problem)


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


UNMASKED = SETTINGS.model_copy(update={"masks": False})


def test_without_masks_nothing_is_wrong_with_any(folder: Path, tmp_path: Path) -> None:
    (folder / "b.mask.png").write_text("no picture")
    listed, digests = shard(folder, tmp_path / "folder", UNMASKED)
    assert [*digests] == ["a", "b", "black", "clear", "size"], "and no mask is a sample of its own"
    names = pq.read_schema(tmp_path / "folder/shard-00000.parquet").names
    assert names == SCHEMA.names

    # A list of a user whose own column is called so: beside its pictures, and by itself.
    for place, prefix in ((folder, ""), (tmp_path, "set/")):
        values: list[object] = [5, "no file", f"{prefix}a.mask.webp", ["x"], None]
        rows = [
            {"image": f"{prefix}{name}.png", "caption": "x", "mask": value}
            for name, value in zip(("a", "b", "black", "clear", "size"), values)
        ]
        path = write_jsonl(place / "metadata.jsonl", rows)
        source = folder if place == folder else path
        listed, digests = shard(source, tmp_path / f"list {len(prefix)}", UNMASKED)
        problems = {row.where: row.problem for row in listed.rows if row.problem}
        assert not any("metadata" in where for where in problems), problems
        assert len(digests) == 5 and not any(row.mask for row in listed.rows)
        assert not any("a.mask.webp" in where for where in problems)
    (folder / "metadata.jsonl").unlink()

    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name, member in (("a.png", "a.png"), ("a.txt", "a.txt")):
            tar.add(folder / name, member)
        for suffix in ("png", "webp"):
            tar.add(folder / "a.mask.webp", f"a.mask.{suffix}")
    listed, digests = shard(tmp_path / "set.tar", tmp_path / "tar", UNMASKED)
    assert len(digests) == 1 and not listed.rows[0].mask

    table = {"image": [png(picture(0))], "mask": [7], "text": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    (group,) = read_source(str(tmp_path / "set.parquet"), UNMASKED).groups
    ((row, found),) = Inspector.of(UNMASKED).unpack(group, str(tmp_path / "pictures"))
    assert not found.reason and row.mask is None
    (group,) = read_source(str(tmp_path / "set.parquet")).groups
    ((row, _),) = Inspector.of(SETTINGS).unpack(group, str(tmp_path / "pictures"))
    assert row.problem == "bad mask: 7, allowed: bytes, a path, or {bytes, path}"


def test_settings_of_before_there_were_masks_fit() -> None:
    assert PrepareSettings(**SETTINGS.model_dump(exclude={"masks"})) == SETTINGS


def test_a_mask_that_is_no_picture_is_told_as_a_mask(folder: Path, tmp_path: Path) -> None:
    (folder / "b.mask.png").write_text("no picture")
    listed, _ = shard(folder, tmp_path)
    (problem,) = [row.problem for row in listed.rows if row.where == "b.png"]
    assert problem is not None and problem.startswith("bad mask: b.mask.png: broken image")
    rows = [{"image": "a.png", "mask": "gone.png", "caption": "x"}]
    write_jsonl(folder / "metadata.jsonl", rows)
    row = next(row for row in read_source(str(folder)).rows if "metadata" in row.where)
    assert row.problem == "bad mask: missing image: no such file 'gone.png'"


def test_a_broken_mask_in_shards_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    shard(folder, tmp_path)
    path = tmp_path / "shard-00000.parquet"
    table = pq.read_table(path).to_pylist()
    table[0][MASK] = b"no picture"
    pq.write_table(pa.Table.from_pylist(table), path, row_group_size=1)
    with pytest.raises(DataError, match=r"^sample a: its mask in the shards is broken"):
        masks(tmp_path, 1)


def test_captions_beside_masks_are_told_of(folder: Path) -> None:
    (folder / "a.mask.txt").write_text("white on its left")
    listed = read_source(str(folder), SETTINGS)
    assert not any(row.problem for row in listed.rows)
    assert "captions beside 1 masks or references: left aside: a.mask.txt" in listed.notes
