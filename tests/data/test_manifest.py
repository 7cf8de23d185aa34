from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.data.manifest import Manifest, PrepareSettings, Quarantined, load_manifest, save_manifest
from dopsd.errors import DataError


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
