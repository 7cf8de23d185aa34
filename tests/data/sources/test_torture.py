"""Over a thousand bad and odd samples: each becomes exactly what it must, and none gets lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.pictures.images import decode_png
from dopsd.data.prepare.run import prepare
from tests.data.samples import SMALL
from tests.data.sources import torture
from tests.data.sources.torture import Torture

SETTINGS = PrepareSettings(**SMALL, max_bad_fraction=1.0, max_enlarge=100.0)
WORKER_BYTES = 900 * 2**20
"""A Ray worker with Ray Data alone takes up to some 350 MiB; a single decoded bomb would take 600
MiB more."""


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, tuple[Torture, Manifest, Path]]:
    """Each kind of source, prepared once."""
    root = tmp_path_factory.mktemp("torture")
    makers: dict[str, Callable[[Path], Torture]] = {
        "folder": torture.folder,
        "jsonl": torture.jsonl,
        "parquet": torture.parquet,
    }
    found = {}
    for name, make in makers.items():
        made = make(root / name / "source")
        shards = root / name / "shards"
        manifest = prepare(str(made.source), str(shards), SETTINGS, cpus_per_task=1.0)
        found[name] = (made, manifest, shards)
    return found


def test_more_than_a_thousand_inputs(outcomes: dict[str, tuple[Torture, Manifest, Path]]) -> None:
    inputs = [each for made, _, _ in outcomes.values() for each in made.by_place.values()]
    assert len(inputs) > 1000
    assert sum(1 for each in inputs if each.reason) > 500


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_every_input_becomes_what_it_must(
    outcomes: dict[str, tuple[Torture, Manifest, Path]], kind: str
) -> None:
    made, manifest, shards = outcomes[kind]
    reasons = {entry.where: entry for entry in manifest.quarantined}
    assert len(reasons) == len(manifest.quarantined)
    told = {place.replace("\n", "\\n"): expected for place, expected in made.by_place.items()}
    wrong = {
        place: reasons[place].reason if place in reasons else "accepted"
        for place, expected in told.items()
        if (place in reasons) != bool(expected.reason)
        or (place in reasons and not reasons[place].reason.startswith(expected.reason))
    }
    assert not wrong
    assert set(reasons) <= set(told)
    assert {place: entry.samples for place, entry in reasons.items()} == {
        place: expected.samples for place, expected in told.items() if expected.reason
    }
    accepted = [expected for expected in told.values() if not expected.reason]
    lost = sum(entry.samples for entry in manifest.quarantined)
    assert manifest.samples == len(accepted)
    assert manifest.seen == manifest.samples + lost

    rows = [row for file in sorted(shards.glob("*.parquet")) for row in _rows(file)]
    assert len({row["sample_id"] for row in rows}) == len(rows) == manifest.samples
    for row in rows:
        pixels = decode_png(row["image"])
        assert pixels.shape == (row["height"], row["width"], 3)
        assert row["bucket"] in manifest.buckets
    texts = sorted(text for row in rows for _, text in row["captions"])
    for expected in accepted:
        assert expected.caption is None or expected.caption in texts
    assert "the secret" not in texts
    assert {path.name for path in shards.iterdir()} == {
        "manifest.json",
        ".dopsd.json",
        *(group.file for group in manifest.row_groups),
    }


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_accepted_pictures_are_upright_and_over_white(
    outcomes: dict[str, tuple[Torture, Manifest, Path]], kind: str
) -> None:
    made, _, shards = outcomes[kind]
    found = {row["sample_id"]: row for file in shards.glob("*.parquet") for row in _rows(file)}
    assert len(made.corners) > 50
    for name, corner in made.corners.items():
        pixel = decode_png(found[name]["image"])[3, 3]
        assert max(abs(int(a) - b) for a, b in zip(pixel, corner, strict=True)) <= 2, name


def test_nothing_is_written_outside(outcomes: dict[str, tuple[Torture, Manifest, Path]]) -> None:
    for made, _, shards in outcomes.values():
        beside = {path.name for path in shards.parent.iterdir()}
        assert beside <= {"source", "shards", "outside", "beside.png", "above.png"}
        assert made.source.exists()


def test_workers_stay_small(outcomes: dict[str, Any]) -> None:
    peaks = {}
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::"):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peaks[process.pid] = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        except (psutil.Error, OSError, IndexError):
            continue
    assert peaks
    assert max(peaks.values()) < WORKER_BYTES


def _rows(shard: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(shard).to_pylist()
    return rows
