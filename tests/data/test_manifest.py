from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.data.manifest import (
    Manifest,
    PrepareSettings,
    Quarantined,
    RowGroup,
    check_shards,
    load_manifest,
    save_manifest,
)
from dopsd.errors import DataError
from dopsd.files.seal import sealed


def example() -> Manifest:
    return Manifest(
        source="pictures",
        settings=PrepareSettings(),
        seen=3,
        samples=1,
        buckets={"32x32": 1},
        concepts={"": 1},
        caption_sets=(),
        references={"0": 1},
        fingerprint="f",
        row_groups=(),
        quarantined=(
            Quarantined(where="a.png", sample_id="a", reason="broken image: one"),
            Quarantined(where="b.png", sample_id="b", reason="broken image: two"),
        ),
        notes=("a note",),
    )


def test_a_saved_manifest_reads_back(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), example())
    assert load_manifest(str(tmp_path)) == example()


def test_the_summary_counts_each_kind_of_quarantine() -> None:
    lines = example().summary_lines()
    assert "quarantined: 2 of 3" in lines
    assert "  2 x broken image, e.g. a.png: broken image: one" in lines
    assert lines[-1] == "note: a note"


VALUES = example().model_dump(mode="json")
OLDER = json.dumps(VALUES)
CHANGED = json.dumps(json.loads(sealed(VALUES)) | {"samples": 2})


def test_a_shard_that_is_cut_off_or_gone_is_named(tmp_path: Path) -> None:
    group = RowGroup(file="shard-0.parquet", row_group=0, bucket="32x32", rows=1, concepts=())
    manifest = example().model_copy(
        update={"row_groups": (group,), "files": {"shard-0.parquet": 10}}
    )
    shard = tmp_path / "shard-0.parquet"
    shard.write_bytes(b"x" * 10)
    check_shards(str(tmp_path), manifest)
    shard.write_bytes(b"x" * 9)
    with pytest.raises(DataError, match=r"shard-0\.parquet: 9 bytes, manifest\.json says 10 bytes"):
        check_shards(str(tmp_path), manifest)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-0\.parquet: missing"):
        check_shards(str(tmp_path), manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json, so this is no prepared data set"),
        ("{", "not JSON"),
        ("[]", "found list, allowed: a valid dictionary"),
        ('{"format": "other"}', "not a manifest of dopsd shards"),
        (
            '{"format": "dopsd-shards", "schema_version": 3}',
            "version 3, this dopsd reads 2",
        ),
        ('{"format": "dopsd-shards", "schema_version": 2}', "source: missing"),
        (OLDER, "of an older dopsd: it has no sha256 of its content; prepare the data again"),
        (CHANGED, "damaged or changed by hand"),
    ],
)
def test_what_is_not_a_manifest_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_manifest(str(tmp_path))


def test_a_manifest_of_a_newer_dopsd_is_refused(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), example())
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        load_manifest(str(tmp_path))
