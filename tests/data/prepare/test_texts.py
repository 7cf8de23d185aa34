"""Samples without a picture: two captions, drawn in a size that the config says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.config import parse_config
from dopsd.data.look import look
from dopsd.data.manifest import PrepareSettings, RowRef, load_manifest
from dopsd.data.pictures.absent import check_drawn_size, check_pictures
from dopsd.data.planning.concepts import restricted
from dopsd.data.planning.plan import MicroBatch
from dopsd.data.prepare.run import prepare
from dopsd.data.prepare.shards import Inspector, write_shard
from dopsd.data.read import READ_SCHEMA, ReadSpec, RowGroups, read_micro_batch, samples_of
from dopsd.data.run_data import preview_samples
from dopsd.data.sources.read import read_source
from dopsd.errors import ConfigError, DataError
from dopsd.report.look import render
from tests.data.samples import SMALL, picture, png, write_jsonl, write_shards
from tests.helpers.tiny import make_config

WIDE = PrepareSettings(**SMALL, drawn_size="96x32")
TWO = {"caption_short": ["a"], "caption_long": ["a a"]}
KLASS = {"concept": "klass"}
CAPTIONS = {"short": "a [V]", "detailed": "a [V] in the rain at night"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A picture with two captions, texts alone, and every kind of bad texts."""
    picture(0).save(tmp_path / "a.png")
    return write_jsonl(
        tmp_path / "set.jsonl",
        [
            {"image": "a.png", "captions": CAPTIONS, "concept": "cat"},
            {"captions": CAPTIONS, "concept": "dog"},
            {"image": "", "captions": CAPTIONS, "id": "two", "concept": "dog"},
            {"captions": {"short": "alone", "detailed": ""}},
            {"captions": CAPTIONS, "mask": "a.png"},
            {"image": "none.png", "captions": CAPTIONS},
        ],
    )


def test_texts_are_read_where_a_size_is_given_and_what_is_bad_is_named(rows: Path) -> None:
    listed = read_source(str(rows), WIDE)
    problems = {row.where: row.problem for row in listed.rows if row.problem}
    assert [row.sample_id for row in listed.rows[:3]] == ["a", "set/2", "two"]
    assert problems == {
        "set.jsonl:4": "missing image: no field 'image' and 1 captions, allowed without a picture: "
        "2 or more",
        "set.jsonl:5": "bad mask: there is no picture of it",
    }
    inspector = Inspector.of(WIDE)
    found = [inspector.inspect(row) for row in listed.rows if row.problem is None]
    assert found[0].bucket == "32x32" and found[0].facts is not None
    assert [(one.bucket, one.facts) for one in found[1:3]] == [("44x20", None)] * 2
    assert found[3].reason.startswith("missing image: no such file"), "a path that is wrong"


def test_without_a_size_they_are_no_samples_and_the_key_is_named(rows: Path) -> None:
    second = read_source(str(rows), PrepareSettings(**SMALL)).rows[1]
    assert second.problem == (
        "missing image: no field 'image' (data.drawn_size takes texts alone, for context.name: "
        "enhanced_prompt)"
    )


def test_tables_hold_texts_beside_pictures_and_alone(tmp_path: Path) -> None:
    texts = {"caption_short": ["a", "b"], "caption_long": ["a a", "b b"]}
    mixed = {"image": pa.array([png(picture(0)), None], pa.binary())}
    pq.write_table(pa.table({**mixed, **texts}), tmp_path / "mixed.parquet")
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    for name, pictured in (("mixed", 1), ("texts", 0)):
        source = str(tmp_path / f"{name}.parquet")
        found = look(source, WIDE, lambda *_: None)
        assert len(found.rows) == 2 and len(found.pictures) == pictured
        assert found.buckets["44x20"] == 2 - pictured
        assert f"without a picture: {2 - pictured} of 2 samples" in "\n".join(found.lines())
        assert len({row.sample_id for row in found.rows}) == 2
    assert "No sample has one." in render(found)
    refused = look(source, PrepareSettings(**SMALL), lambda *_: None)
    assert "missing column: 'image'" in refused.quarantined[0].reason


def test_a_column_of_pictures_that_is_named_and_not_there_makes_no_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(picture(0))], **TWO}), tmp_path / "set.parquet")
    picture(0).save(tmp_path / "a.png")
    write_jsonl(tmp_path / "set.jsonl", [{"image": "a.png", "captions": CAPTIONS}])
    wrong = WIDE.model_copy(update={"columns": {"image": "imge", "concept": "klass"}})
    for name, line in (
        ("set.parquet", "missing column: 'imge', there are 'image', 'caption_short'"),
        (
            "set.jsonl",
            "missing image: no field 'imge' (data.columns.image); the row has 'image' (data.col",
        ),
    ):
        found = read_source(str(tmp_path / name), wrong)
        assert [(row.problem or "").startswith(line) for row in found.rows] == [True], found.rows
    told = read_source(str(tmp_path / "set.parquet"), WIDE.model_copy(update={"columns": KLASS}))
    assert "no column 'klass' for concept (data.columns={concept: ...}) in 1 files" in told.notes
    assert len(told.groups) == 1


def test_a_shard_holds_them_and_training_reads_both_captions(rows: Path, tmp_path: Path) -> None:
    listed, inspector = read_source(str(rows), WIDE), Inspector.of(WIDE)
    row = listed.rows[1]
    bucket = inspector.inspect(row).bucket
    digests = write_shard(str(tmp_path / "shard-00000.parquet"), [(bucket, [row])])
    ref = RowRef("shard-00000.parquet", 0, 0)
    batch = MicroBatch(0, 0, 0, bucket, (ref,), (0,), (0,), 1)
    pairs = (("short", "detailed"),)

    def read(**options) -> dict:
        groups = RowGroups(str(tmp_path), ReadSpec(prompt_pairs=pairs, **options))
        values = read_micro_batch(batch, groups, 0)
        (again,) = pa.Table.from_pylist([values], schema=READ_SCHEMA).to_pylist()
        return again

    (sample,) = samples_of(values := read(images=False))
    assert (values["width"], values["height"]) == (44, 20) and sample.image is None
    assert (sample.prompt, sample.teacher_prompt) == tuple(CAPTIONS.values())
    with pytest.raises(DataError, match=r"sample set/2: has no picture"):
        read()
    (shown,) = samples_of(read(stand_ins=True))
    assert not shown.pictured and shown.target.shape == (20, 44, 3)
    row.captions["detailed"] += "!"
    assert write_shard(str(tmp_path / "b.parquet"), [(bucket, [row])]) != digests


@pytest.mark.parametrize(
    ("samples", "concepts", "found"),
    [
        ({"cat": "tttt", "dog": "tt"}, [], 0),
        ({"cat": "tptt", "dog": "pp"}, ["cat"], 1),
        ({"cat": "tptt", "dog": "pp"}, [], 3),
    ],
)
def test_pictures_are_looked_for_where_the_manifest_knows_of_some_and_none_is_made_up(
    samples: dict[str, str],
    concepts: list[str],
    found: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = write_shards(tmp_path / "shards", samples)
    pairs = {"name": "enhanced_prompt", "prompt_pairs": [["short", "detailed"]]}
    data = {"source": "unused", "shards": str(tmp_path / "shards"), "concepts": concepts}
    config = make_config("base", context=pairs, data=data)
    monkeypatch.setattr("dopsd.data.read.stand_in", lambda *_: pytest.fail("a stand-in is drawn"))
    read: list[RowRef] = []
    row = RowGroups.row
    monkeypatch.setattr(RowGroups, "row", lambda own, ref: read.append(ref) or row(own, ref))
    shown = preview_samples(config, manifest, 8, pictured=True)
    assert len(shown) == found and all(sample.pictured for sample in shown)
    assert bool(read) == bool(found), "nothing is read to find nothing"


@pytest.mark.parametrize("size", ["1024", "0x64", "64x", "9000x64", "64 x 64"])
def test_a_size_is_one(size: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.drawn_size.*WIDTHxHEIGHT in pixels"):
        parse_config("", "", ["data.source=a", f"data.drawn_size={size}"])


def test_what_looks_at_pictures_refuses_the_size() -> None:
    pairs = {"name": "enhanced_prompt", "prompt_pairs": [["short", "detailed"]]}
    data = {"source": "unused", "drawn_size": "64x64"}
    check_drawn_size(make_config("base", context=pairs, data=data))
    with pytest.raises(ConfigError, match=r"drawn_size: 64x64 with context.name: vlm, whose teach"):
        check_drawn_size(make_config("base", data=data))
    sft = {"objective": "sft"}
    config = make_config("base", context=pairs, data=data, method=sft, source="fused")
    with pytest.raises(ConfigError, match=r"with method.objective: sft, which trains on pictures"):
        check_drawn_size(config)


@pytest.mark.usefixtures("ray_cluster")
def test_prepared_shards_name_the_row_to_whom_needs_its_picture(rows: Path, tmp_path: Path) -> None:
    settings, shards = WIDE.model_copy(update={"max_bad_fraction": 0.6}), str(tmp_path / "shards")
    manifest = prepare(str(rows), shards, settings)
    assert manifest == load_manifest(shards)
    ((name, texts),) = manifest.without_picture.items()
    assert (name, texts.samples, texts.first) == ("dog", 2, "set.jsonl:2")
    told = "without a picture: 2 of 3 samples, drawn as pictures of 96x32 are (data.drawn_size)"
    assert told in manifest.summary_lines()
    vlm = make_config("base")
    with pytest.raises(DataError, match=r"set.jsonl:2: has no picture \(2 of 3.*context.name: vlm"):
        check_pictures(vlm, manifest)
    check_pictures(vlm, restricted(manifest, shards, ["cat"]))
    context = {"name": "enhanced_prompt", "prompt_pairs": [["short", "detailed"]]}
    config = make_config("base", context=context, data={"source": "unused", "shards": shards})
    check_pictures(config, manifest)
    assert len(preview_samples(config, manifest, 3)) == 3
    (cat,) = preview_samples(config, manifest, 3, pictured=True)
    assert cat.sample_id == "a" and np.asarray(cat.target).std() > 20
