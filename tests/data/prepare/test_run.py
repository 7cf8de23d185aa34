"""Prepare with real Ray Data on small sources."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.config import DataSection
from dopsd.data.manifest import Manifest, PrepareSettings, load_manifest
from dopsd.data.pictures.images import decode_png
from dopsd.data.prepare import run as prepare_run
from dopsd.data.prepare.folder import owned
from dopsd.data.prepare.layout import lay_out
from dopsd.data.prepare.run import load_prepared, prepare
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.schema import SCHEMA
from dopsd.errors import DataError, StorageError
from tests.data.samples import SMALL, picture, write_folder, write_jsonl

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(source: Path, shards: Path, **options: Any) -> Manifest:
    overwrite = options.pop("overwrite", False)
    settings = PrepareSettings(**{**SMALL, "rows_per_group": 3, "groups_per_shard": 2, **options})
    return prepare(str(source), str(shards), settings, overwrite=overwrite, cpus_per_task=0.5)


def rows_of(shards: Path) -> dict[str, dict[str, Any]]:
    rows = [row for file in shards.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len({row["sample_id"] for row in rows}) == len(rows)
    return {row["sample_id"]: row for row in rows}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_shards_hold_one_bucket_per_row_group_and_every_sample(tmp_path: Path) -> None:
    sizes = ((32, 32), (80, 56), (28, 36))
    source = write_folder(tmp_path / "source", 20, sizes)
    stages: list[tuple[str, int, int]] = []
    settings = PrepareSettings(**SMALL, rows_per_group=3, groups_per_shard=2)
    manifest = prepare(str(source), str(tmp_path / "shards"), settings, lambda *s: stages.append(s))
    assert manifest.samples == manifest.seen == 20
    assert manifest.buckets == {"28x36": 6, "32x32": 7, "40x28": 7}
    assert ("checking images", 20, 20) in stages and ("writing shards", 20, 20) in stages
    for group in manifest.row_groups:
        with pq.ParquetFile(tmp_path / "shards" / group.file) as parquet:
            assert parquet.schema_arrow.equals(SCHEMA, check_metadata=False)
            assert parquet.schema_arrow.metadata[b"dopsd.version"] == b"2"
            table = parquet.read_row_group(group.row_group)
        assert set(table["bucket"].to_pylist()) == {group.bucket}
        assert table.num_rows == group.rows <= 3
    files = {group.file for group in manifest.row_groups}
    assert {file.name for file in (tmp_path / "shards").glob("*.parquet")} == files
    rows = rows_of(tmp_path / "shards")
    assert sorted(rows) == [f"{number:03}" for number in range(20)]
    row = rows["003"]
    assert (row["width"], row["height"], row["bucket"]) == (32, 32, "32x32")
    assert row["captions"] == [("caption", "picture 3")] and row["concept"] is None
    assert np.array_equal(decode_png(row["image"]), picture(3))
    assert load_manifest(str(tmp_path / "shards")) == manifest


def test_same_source_settings_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order and size of the tasks: here the CPUs of a task differ."""
    source = write_folder(tmp_path / "source", 24, ((32, 32), (40, 28)))
    (source / "000.png").write_bytes(b"no picture")
    run(source, tmp_path / "a")
    settings = PrepareSettings(**SMALL, rows_per_group=3, groups_per_shard=2)
    prepare(str(source), str(tmp_path / "b"), settings, cpus_per_task=2.0)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_seed_reorders_the_same_samples(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", 24)
    one, two = run(source, tmp_path / "a"), run(source, tmp_path / "b", seed=1)
    assert digests(tmp_path / "a") != digests(tmp_path / "b")
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    assert one.fingerprint == two.fingerprint


def test_fingerprint_follows_ids_captions_concepts_and_pixels(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    base = [
        {"image": "a.png", "caption": "one", "id": "a"},
        {"image": "b.png", "caption": "two", "id": "b"},
    ]
    changes: list[dict[str, str]] = [
        {},
        {"caption": "other"},
        {"id": "c"},
        {"concept": "dog"},
        {"image": "b.png"},
    ]
    prints = []
    for number, change in enumerate(changes):
        source = write_jsonl(tmp_path / f"{number}.jsonl", [{**base[0], **change}, base[1]])
        prints.append(run(source, tmp_path / f"shards{number}").fingerprint)
    assert len(set(prints)) == len(changes)
    reordered = write_jsonl(tmp_path / "r.jsonl", base[::-1])
    assert run(reordered, tmp_path / "r").fingerprint == prints[0]


def test_every_kind_of_bad_input_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", 12)
    data = (folder / "000.png").read_bytes()
    bad = {
        "cut": (data[: len(data) // 2], b"x", "broken image"),
        "text": (b"not an image", b"x", "broken image: not a format"),
        "nil": (b"", b"x", "zero bytes"),
        "mute": (data, b" \n", "empty caption"),
        "latin": (data, b"\xff\xfe", "caption is not UTF-8"),
        "bare": (data, None, "missing caption: no bare.txt"),
    }
    for name, (image, caption, _) in bad.items():
        (folder / f"{name}.png").write_bytes(image)
        if caption is not None:
            (folder / f"{name}.txt").write_bytes(caption)
    (folder / "alone.txt").write_text("x")
    (folder / "000.webp").write_bytes(data)
    manifest = run(folder, tmp_path / "shards", max_bad_fraction=0.5)
    assert (manifest.seen, manifest.samples) == (20, 12)
    reasons = {entry.where: entry.reason for entry in manifest.quarantined}
    for name, (_, _, reason) in bad.items():
        assert reasons[f"{name}.png"].startswith(reason), reasons
    assert reasons["alone.txt"] == "missing image: no picture beside alone.txt"
    assert reasons["000.webp"] == "duplicate id '000': first in 000.png"
    assert set(rows_of(tmp_path / "shards")) == {f"{number:03}" for number in range(12)}


def test_jsonl_quarantine_points_at_lines(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    good = [
        {"image": f"{number:03}.png", "captions": {"short": "s", "long": "l"}, "concept": "dog"}
        for number in range(3)
    ]
    source = write_jsonl(
        tmp_path / "set.jsonl",
        [
            *good,
            {"image": "gone.png", "caption": "x"},
            {"image": "003.png", "caption": "x", "id": "000"},
            {"image": "gone2.png", "caption": "x", "id": "late"},
            {"image": "003.png", "caption": "x", "id": "late"},
            "{",
        ],
    )
    manifest = run(source, tmp_path / "shards", max_bad_fraction=0.5)
    reasons = {entry.where: entry.reason for entry in manifest.quarantined}
    assert reasons["set.jsonl:4"].startswith("missing image: no such file")
    assert reasons["set.jsonl:5"] == "duplicate id '000': first in set.jsonl:1"
    assert reasons["set.jsonl:6"].startswith("missing image")
    assert reasons["set.jsonl:8"].startswith("not JSON")
    assert set(reasons) == {"set.jsonl:4", "set.jsonl:5", "set.jsonl:6", "set.jsonl:8"}
    assert manifest.caption_keys == {"caption": 1, "long": 3, "short": 3}
    assert manifest.concepts == {"": 1, "dog": 3}


def test_too_many_bad_samples_stop_with_counts_and_reasons(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", 8)
    (folder / "003.png").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"1 of 8 samples are bad, data.max_bad_fraction allows 0.05: 003.png: zero bytes",
    ):
        run(folder, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_source_without_a_good_sample_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", 1)
    (folder / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 samples are bad"):
        run(folder, tmp_path / "shards", max_bad_fraction=1.0)


def test_an_existing_data_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    run(write_folder(tmp_path / "a", 20), shards)
    before = digests(shards)
    with pytest.raises(DataError, match="holds a prepared data set already"):
        run(write_folder(tmp_path / "b", 4), shards)
    assert digests(shards) == before
    (shards / "other.txt").write_text("stays")
    manifest = run(tmp_path / "b", shards, overwrite=True)
    assert {file.name for file in shards.iterdir()} == {
        "other.txt",
        "manifest.json",
        ".dopsd.json",
        *(group.file for group in manifest.row_groups),
    }
    assert len(rows_of(shards)) == 4


def test_an_unfinished_folder_is_no_data_set_and_is_cleared(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    owned(str(shards)).claim("manifest.json", "shard-00099.parquet")
    (shards / "shard-00099.parquet").write_bytes(b"left behind")
    with pytest.raises(DataError, match="no prepared data set"):
        load_manifest(str(shards))
    run(write_folder(tmp_path / "a", 4), shards)
    assert not (shards / "shard-00099.parquet").exists()


def test_a_folder_of_somebody_else_is_refused_and_stays(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "shard-00000-of-00001.parquet").write_bytes(b"an export")
    source = write_folder(tmp_path / "a", 4)
    line = r"^data\.shards: .* holds 1 thing that dopsd did not make: shard-00000-of-00001.parquet;"
    for overwrite in (False, True):
        with pytest.raises(DataError, match=line):
            run(source, shards, overwrite=overwrite)
    assert [file.name for file in shards.iterdir()] == ["shard-00000-of-00001.parquet"]


def test_the_old_data_set_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch) -> None:
    shards, other = tmp_path / "shards", write_folder(tmp_path / "b", 4)
    old = run(write_folder(tmp_path / "a", 20), shards)
    before = digests(shards)
    honest = prepare_run._write_all

    def fails(*arguments: Any) -> Any:
        honest(*arguments)
        raise StorageError("the bucket is away")

    monkeypatch.setattr(prepare_run, "_write_all", fails)
    with pytest.raises(StorageError):
        run(other, shards, overwrite=True)
    assert digests(shards) == before and load_manifest(str(shards)) == old
    monkeypatch.setattr(prepare_run, "_write_all", honest)
    new = run(other, shards, overwrite=True)
    assert {group.file for group in new.row_groups} == {"shard-00000.1.parquet"}
    again = run(tmp_path / "a", shards, overwrite=True)
    assert {file.name for file in shards.glob("*.parquet")} == {g.file for g in old.row_groups}
    assert again == old and digests(shards) == before


def test_a_data_set_that_kept_no_record_is_known_by_its_manifest(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    old = run(write_folder(tmp_path / "a", 20), shards)
    (shards / ".dopsd.json").unlink()
    (shards / "shard-00009.parquet").write_bytes(b"mine")
    foreign = shards / old.row_groups[0].file
    pq.write_table(pa.table({"mine": [1]}), foreign)  # put in the place of one of ours
    kept = foreign.read_bytes()
    new = run(write_folder(tmp_path / "b", 4), shards, overwrite=True)
    assert foreign.read_bytes() == kept
    assert {file.name for file in shards.glob("*.parquet")} == {
        foreign.name,
        "shard-00009.parquet",
        *(group.file for group in new.row_groups),
    }


def test_load_prepared_names_the_key_that_differs(tmp_path: Path) -> None:
    data = DataSection(source="x", **SMALL, rows_per_group=5)
    settings = prepare_settings(data, seed=3)
    assert (settings.seed, settings.rows_per_group, settings.pixel_area) == (3, 5, 1024)
    shards = str(tmp_path / "shards")
    manifest = prepare(str(write_folder(tmp_path / "a", 4)), shards, settings)
    assert load_prepared(shards, data) == manifest
    for key, value in (("pixel_area", 4096), ("bucket_multiple", 8)):
        with pytest.raises(DataError, match=rf"data.{key}: {value}, but .* prepared with"):
            load_prepared(shards, data.model_copy(update={key: value}))


def test_several_areas_share_the_samples_out(tmp_path: Path) -> None:
    data = DataSection(source="x", **{**SMALL, "pixel_area": [1024, 4096]})
    source = str(write_folder(tmp_path / "a", 16, ((64, 64), (128, 128), (32, 32))))
    made = [
        prepare(source, str(tmp_path / name), prepare_settings(data, seed))
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]
    one, again, other = (rows_of(tmp_path / name) for name in ("one", "again", "other"))
    assert set(made[0].buckets) == {"32x32", "64x64"} and made[0].samples == 16
    assert one == again and made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert any(one[key]["bucket"] != other[key]["bucket"] for key in one)
    assert {row["bucket"] for key, row in one.items() if int(key) % 3 == 2} == {"32x32"}
    assert load_prepared(str(tmp_path / "one"), data) == made[0]
    with pytest.raises(DataError, match=r"data.pixel_area: 1024, but .* with \(1024, 4096\)"):
        load_prepared(str(tmp_path / "one"), DataSection(source="x", **SMALL))


def test_the_layout_mixes_and_ignores_the_order_given() -> None:
    settings = PrepareSettings(rows_per_group=4, groups_per_shard=3)
    samples = [
        (at, f"s{at:03}", "32x32" if at % 3 else "40x28", "cat" if at % 2 else "dog")
        for at in range(50)
    ]
    shards = lay_out(samples, settings)
    assert lay_out(samples[::-1], settings) == shards
    placed = [at for shard in shards for _, rows in shard.groups for at in rows]
    assert sorted(placed) == list(range(50)) and placed != sorted(placed)
    for shard in shards:
        assert len(shard.groups) <= 3
        for bucket, rows in shard.groups:
            assert {samples[at][2] for at in rows} == {bucket}
            concepts = [samples[at][3] for at in rows]
            assert concepts == sorted(concepts)


def test_the_manifest_tells_whose_every_row_is(tmp_path: Path) -> None:
    names = ("cat", "dog", None, "cat", "dog", None, "cat", "cat")
    write_folder(tmp_path / "pictures", len(names))
    rows = [
        {"image": f"pictures/{at:03}.png", "caption": "a picture", "concept": name}
        for at, name in enumerate(names)
    ]
    source = write_jsonl(tmp_path / "data.jsonl", rows)
    manifest = run(source, tmp_path / "shards")
    for group in manifest.row_groups:
        with pq.ParquetFile(tmp_path / "shards" / group.file) as parquet:
            found = parquet.read_row_group(group.row_group)["concept"].to_pylist()
        told = [name or None for name, count in group.concepts for _ in range(count)]
        assert found == told
    assert manifest.concepts == {"": 2, "cat": 4, "dog": 2}
