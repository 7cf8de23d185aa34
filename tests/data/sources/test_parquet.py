"""Parquet files as a source: listed by the driver, read by tasks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.pictures.images import decode_png
from dopsd.data.prepare.run import prepare
from dopsd.data.prepare.shards import Inspector, fetch_image
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import ByteRange, SourceRow
from dopsd.data.sources.settings import ReadSettings
from dopsd.errors import DataError
from tests.data.samples import SMALL, picture, png, write_folder

INSPECTOR = Inspector.of(PrepareSettings(**SMALL))


def read(source: Path, columns: dict[str, str] | None = None) -> list[SourceRow]:
    """Every sample of a parquet source, as its tasks see it."""
    found = read_source(str(source), ReadSettings(columns=columns or {}))
    rows = list(found.rows)
    for at, group in enumerate(found.groups):
        aside = source.parent / f"aside-{at}"
        rows += [row for row, _ in INSPECTOR.unpack(group, str(aside))]
    return rows


def problems(rows: list[SourceRow]) -> dict[str, str | None]:
    return {row.where: row.problem for row in rows}


IMAGES = {
    "bytes": lambda number: png(picture(number)),
    "hugging face": lambda number: {"bytes": png(picture(number)), "path": f"{number}.png"},
    "path": lambda number: f"pictures/{number:03}.png",
    "hugging face, path": lambda number: {"bytes": None, "path": f"pictures/{number:03}.png"},
}


@pytest.mark.parametrize("kind", IMAGES)
def test_pictures_in_every_form(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "pictures", 5)
    table = pa.table({"image": [IMAGES[kind](n) for n in range(5)], "text": list("abcde")})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    rows = read(tmp_path / "set.parquet")
    assert [row.problem for row in rows] == [None] * 5
    assert [row.where for row in rows] == [
        f"set.parquet:{at}" for at in ("0:0", "0:1", "1:0", "1:1", "2:0")
    ]
    # Ids must stay the same when rows are read again, and need not be unique among paths.
    by_path = kind == "path"
    assert rows[3].sample_id == ("pictures/003" if by_path else "set/1/1")
    assert [row.captions["caption"] for row in rows] == list("abcde")
    for number, row in enumerate(rows):
        assert row.image is not None
        assert np.array_equal(decode_png(fetch_image(row.image)), picture(number))


CAPTIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "caption": ({"caption": ["x"]}, {"caption": "x"}),
    "prompt": ({"prompt": ["x"]}, {"caption": "x"}),
    "text": ({"captions": ["x"]}, {"caption": "x"}),
    "struct": ({"captions": [{"short": "x", "long": None}]}, {"short": "x"}),
    "map": (
        {"captions": pa.array([[("a", "x"), ("b", "y")]], pa.map_(pa.string(), pa.string()))},
        {"a": "x", "b": "y"},
    ),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_in_every_form(tmp_path: Path, kind: str) -> None:
    columns, expected = CAPTIONS[kind]
    table = pa.table({"image": [png(picture(0))], **columns})
    pq.write_table(table, tmp_path / "set.parquet")
    assert [row.captions for row in read(tmp_path / "set.parquet")] == [expected]


def test_columns_of_other_names(tmp_path: Path) -> None:
    values = {"jpg": [png(picture(0))], "words": ["x"], "key": ["a"], "image": [3], "width": [4]}
    pq.write_table(pa.table(values), tmp_path / "set.parquet")
    columns = {"image": "jpg", "caption": "words", "id": "key"}
    (row,) = read(tmp_path / "set.parquet", columns)
    assert (row.sample_id, row.captions, row.problem) == ("a", {"caption": "x"}, None)
    assert read_source(str(tmp_path / "set.parquet"), ReadSettings(columns=columns)).notes == [
        "column 'image' is unknown: left aside in 1 files",
        "column 'width' is unknown: left aside in 1 files",
    ]
    (bad,) = read_source(str(tmp_path / "set.parquet")).rows
    assert bad.problem == (
        "missing column: a caption, allowed: prompt, text, caption, captions; there are 'jpg', "
        "'words', 'key', 'image', 'width' (set data.columns)"
    )


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = png(picture(0))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "out.png").symlink_to(tmp_path / "secret.png")
    picture(1).save(tmp_path / "secret.png")
    image = pa.array([None, b"", good[:90], good, b"text"], pa.binary())
    caption = pa.array(["x", "x", "x", None, "x"], pa.string())
    pq.write_table(pa.table({"image": image, "caption": caption}), tmp_path / "inside/a.parquet")
    paths = ["../secret.png", str(tmp_path / "secret.png"), "s3://b/x.png", "out.png", "gone.png"]
    table = pa.table({"image": paths, "caption": ["x"] * 5, "id": list("abcde")})
    pq.write_table(table, tmp_path / "inside/b.parquet")
    pq.write_table(table.set_column(1, "caption", [[1] * 5]), tmp_path / "inside/c.parquet")
    found = {
        where: (text or "")[:30] for where, text in problems(read(tmp_path / "inside")).items()
    }
    leaves = "image path leaves the folder of its file"[:30]
    assert found == {
        "a.parquet:0:0": "missing image: no field 'image",
        "a.parquet:0:1": "zero bytes",
        "a.parquet:0:2": found["a.parquet:0:2"],
        "a.parquet:0:3": "missing caption",
        "a.parquet:0:4": "broken image: not a format of ",
        **{f"b.parquet:0:{number}": leaves for number in range(4)},
        "b.parquet:0:4": "missing image: no such file " + str(tmp_path)[:2],
        **{f"c.parquet:0:{number}": leaves for number in range(4)},
        "c.parquet:0:4": "caption 'caption': 1, allowed:",
    }
    assert found["a.parquet:0:2"].startswith("broken image")


def test_broken_files_and_pages_take_only_their_own_rows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    table = pa.table({"image": [png(picture(n)) for n in range(6)], "caption": ["x"] * 6})
    path = folder / "good.parquet"
    plain = {"use_dictionary": False, "write_statistics": False, "compression": "NONE"}
    pq.write_table(table, path, row_group_size=3, write_page_checksum=True, **plain)
    data = path.read_bytes()
    (folder / "cut.parquet").write_bytes(data[: len(data) // 2])
    (folder / "nil.parquet").write_bytes(b"")
    pq.write_table(table.slice(0, 0), folder / "norows.parquet")
    pq.write_table(table.drop_columns(["image"]), folder / "nocolumn.parquet")
    future = table.replace_schema_metadata({"dopsd.format": "dopsd-shards", "dopsd.version": "99"})
    pq.write_table(future, folder / "future.parquet")
    at = data.index(png(picture(4))) + 500  # in the second row group
    (folder / "page.parquet").write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    rows = read(folder)
    found = problems(rows)
    assert {where for where, problem in found.items() if problem is None} == {
        *(f"good.parquet:{group}:{number}" for group in (0, 1) for number in (0, 1, 2)),
        *(f"page.parquet:0:{number}" for number in (0, 1, 2)),
    }
    assert (found["page.parquet:1:0-2"] or "").startswith("broken parquet")
    assert (found["cut.parquet"] or "").startswith("broken parquet")
    assert (found["nil.parquet"] or "").startswith("broken parquet")
    assert found["norows.parquet"] == "empty: no rows"
    assert found["nocolumn.parquet"] == (
        "missing column: 'image', there are 'caption' (set data.columns)"
    )
    assert found["future.parquet"] == "schema version '99', this dopsd reads 2"
    lost = {row.where: row.samples for row in rows if row.problem}
    assert (lost["page.parquet:1:0-2"], lost["nocolumn.parquet"], lost["cut.parquet"]) == (3, 6, 1)


def test_pictures_with_references_are_set_aside_where_they_are_read(tmp_path: Path) -> None:
    images = [png(picture(n)) for n in range(3)]
    references = [[images[1], images[2]], [b"broken"], []]
    table = pa.table({"image": images, "caption": ["x"] * 3, "references": references})
    pq.write_table(table, tmp_path / "set.parquet")
    first, second, third = read(tmp_path / "set.parquet")
    assert [fetch_image(place) for place in first.references] == images[1:]
    assert second.problem == (
        "bad reference: 1: broken image: not a format of PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"
    )
    size = sum(map(len, images))
    assert third.image == ByteRange(str(tmp_path / "aside-0"), size, size + len(images[2]))


def test_prepared_shards_are_a_source_and_give_the_same_data(
    tmp_path: Path, ray_cluster: None
) -> None:
    source = write_folder(tmp_path / "source", 10, ((32, 32), (40, 28)))
    write_folder(source / "dog", 3)
    settings = PrepareSettings(**SMALL, rows_per_group=3, groups_per_shard=2)

    def run(source: Path, name: str, **options: Any) -> Manifest:
        chosen = settings.model_copy(update=options)
        return prepare(str(source), str(tmp_path / name), chosen, cpus_per_task=0.5)

    first = run(source, "a")
    again = run(tmp_path / "a", "b", seed=1)
    assert (again.fingerprint, again.samples) == (first.fingerprint, 13)
    assert again.concepts == first.concepts
    assert not list((tmp_path / "b").glob(".pictures*"))
    # The base's own samples and encoded contexts lie beside shards, and an older preparing's rest.
    shutil.copytree(tmp_path / "b", tmp_path / "a" / "prior-1")
    (tmp_path / "a" / "encoded-1").mkdir()
    encoded = tmp_path / "a" / "encoded-1" / "shard-00000-0.parquet"
    pq.write_table(pa.table({"sample_id": ["x"], "payload": [b"y"]}), encoded)
    beside = run(tmp_path / "a", "d", max_bad_fraction=0)
    assert (beside.fingerprint, beside.seen) == (first.fingerprint, 13)
    number = len(list((tmp_path / "b").glob("*.parquet"))) + 1
    assert f"{number} .parquet files that manifest.json does not name: left aside" in beside.notes
    (tmp_path / "a" / "shard-00000.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of \d+ samples are bad.*shard-00000.parquet: broken"):
        run(tmp_path / "a", "c", max_bad_fraction=0.01)
    assert not (tmp_path / "c").exists()
    (tmp_path / "a" / "shard-00000.parquet").unlink()
    gone = sum(each.rows for each in first.row_groups if each.file == "shard-00000.parquet")
    with pytest.raises(DataError, match=rf"{gone} of 13 .* missing file: manifest.json names it"):
        run(tmp_path / "a", "c", max_bad_fraction=0.01)


def test_a_manifest_of_others_changes_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(picture(1))], "caption": ["x"]}), tmp_path / "x.parquet")
    for text in ("{", "[]", '{"format": "another"}'):
        (tmp_path / "manifest.json").write_text(text)
        assert len(read_source(str(tmp_path)).groups) == 1
    (tmp_path / "manifest.json").write_text('{"format": "dopsd-shards", "schema_version": 99}')
    with pytest.raises(DataError, match=r"manifest\.json: schema version 99"):
        read_source(str(tmp_path))
