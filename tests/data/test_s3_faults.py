"""An S3 server that fails: what passes is outlived, what stays is one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.data.manifest import PrepareSettings, load_manifest
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.run import prepare
from dopsd.data.read import RowGroups, read_micro_batch
from dopsd.errors import DataError, StorageError
from dopsd.files import filesystems, storage
from tests.data.samples import SMALL, picture, png
from tests.helpers.faulty_s3 import Faults

TRANSIENT = ("500", "503", "drop")
SETTINGS = PrepareSettings(**SMALL, rows_per_group=4, max_bad_fraction=0.5)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lasting faults need not be tried for a minute."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_reading_and_writing_outlive_what_passes(bucket: str, faults: Faults, kind: str) -> None:
    path, data = f"{bucket}/transient-{kind}", bytes(range(256)) * 40
    writing = faults.add(kind, path="transient", method="PUT", times=2)
    storage.write_bytes(path, data)
    reading = faults.add(kind, path="transient", method="GET|HEAD", times=2)
    assert storage.read_bytes(path) == data
    assert storage.read_bytes(path, 10, 20) == data[10:20]
    listing = faults.add(kind, path="list-type", times=1)
    assert f"transient-{kind}" in storage.names(bucket)
    assert (writing.hits, reading.hits, listing.hits) == (2, 2, 1)


def test_a_body_that_breaks_off_is_read_again(bucket: str, faults: Faults) -> None:
    path, data = f"{bucket}/cut", bytes(range(256)) * 400
    storage.write_bytes(path, data)
    fault = faults.add("cut", path="/cut", method="GET", times=2)
    assert storage.read_bytes(path) == data
    assert fault.hits == 2


def test_slow_bytes_arrive_or_meet_the_deadline(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = f"{bucket}/slow", bytes(200)
    storage.write_bytes(path, data)
    faults.add("slow", path="/slow", method="GET")
    assert storage.read_bytes(path) == data
    monkeypatch.setattr(storage, "OPERATION_S", 1)
    faults.add("slow", path="/slow", method="GET", times=9, pause=0.5)
    with pytest.raises(StorageError, match="slow: the storage does not answer in time"):
        storage.read_bytes(path)


def test_a_server_that_says_nothing_is_tried_again(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "READ_S", 1)
    storage.write_bytes(f"{bucket}/hang", b"x")
    fault = faults.add("hang", path="/hang", method="GET")
    assert storage.read_bytes(f"{bucket}/hang") == b"x"
    assert fault.hits == 1


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("500", "internal (server )?error"),
        ("503", "reduce your request rate|Service Unavailable"),
        ("drop", "closed"),
        ("expired", "token has expired|often expired credentials"),
        ("denied", "Access Denied|no permission"),
    ],
)
def test_what_stays_is_one_line_with_path_and_cause(
    bucket: str, faults: Faults, impatient: None, kind: str, cause: str
) -> None:
    path = f"{bucket}/lasting"
    faults.add(kind, path="lasting", times=1000)
    for act in (
        lambda: storage.read_bytes(path, 0, 9),
        lambda: storage.write_bytes(path, b"x"),
        lambda: storage.open_input(path).read(1),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        assert re.search(cause, message, re.IGNORECASE), message


def test_large_files_go_up_and_come_down_in_parts(
    bucket: str, faults: Faults, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 40 * 2**20, dtype=np.uint8).tobytes()
    fault = faults.add("503", path="partNumber=2", method="PUT")
    storage.write_bytes(f"{bucket}/large", pixels)
    assert fault.hits == 1
    parts = {
        re.findall(r"partNumber=(\d+)", path)[0] for _, path in faults.requests if "part" in path
    }
    assert len(parts) == 3
    cut = faults.add("cut", path="/large", method="GET")
    assert storage.read_bytes(f"{bucket}/large") == pixels
    assert cut.hits == 1


def test_parquet_is_written_and_read_through_faults(bucket: str, faults: Faults) -> None:
    path = f"{bucket}/table.parquet"
    table = pa.table({"image": [bytes([n]) * 50_000 for n in range(20)]})
    for kind in TRANSIENT:
        faults.add(kind, path="table", method="PUT|POST")
    with storage.open_output(path) as sink:
        pq.write_table(table, sink, row_group_size=5)
    faults.clear()
    for kind in (*TRANSIENT, "cut"):
        faults.add(kind, path="table", method="GET")
    with storage.open_input(path) as source, pq.ParquetFile(source) as parquet:
        assert parquet.read_row_group(2).equals(table.slice(10, 5))
    assert [fault.hits for fault in faults.active] == [1, 1, 1, 1]


def test_errors_keep_their_own_line_through_pyarrow(
    bucket: str, faults: Faults, impatient: None
) -> None:
    path = f"{bucket}/gone.parquet"
    with storage.open_output(path) as sink:
        pq.write_table(pa.table({"x": [bytes(200_000)]}), sink, compression="NONE")
    with storage.open_input(path) as source, pq.ParquetFile(source) as parquet:
        faults.add("expired", path="gone", times=1000)
        with pytest.raises(StorageError, match=r"gone.parquet: .*token has expired"):
            parquet.read_row_group(0)


@pytest.mark.integration
def test_prepare_plan_and_read_through_a_failing_server(
    bucket: str, faults: Faults, ray_cluster: None
) -> None:
    for number in range(12):
        storage.write_bytes(f"{bucket}/wild/{number:02}.png", png(picture(number)))
        storage.write_bytes(f"{bucket}/wild/{number:02}.txt", f"picture {number}".encode())
    table = pa.table({"image": [png(picture(20))], "caption": ["a row"]})
    with storage.open_output(f"{bucket}/wild/rows.parquet") as sink:
        pq.write_table(table, sink)
    calm = prepare(f"{bucket}/wild", f"{bucket}/shards-calm", SETTINGS, name="wild")
    for kind in (*TRANSIENT, "cut"):
        faults.add(kind, path=r"wild/0\d.png", method="GET", times=3)
        faults.add(kind, path="list-type", method="GET")
        faults.add(kind, path="shards-wild", method="PUT")
    faults.add("missing", path="wild/11.png", method="GET", times=1000)
    shards = f"{bucket}/shards-wild"
    manifest = prepare(f"{bucket}/wild", shards, SETTINGS, name="wild")
    (gone,) = manifest.quarantined
    assert gone.where == "11.png" and gone.reason.startswith("missing image: no such file s3://")
    assert (manifest.samples, calm.samples) == (12, 13)
    assert sum(fault.hits for fault in faults.active) >= 15

    faults.clear()
    for kind in (*TRANSIENT, "cut"):
        faults.add(kind, path="shards-wild", method="GET", times=2)
    plan = Plan(load_manifest(shards).row_groups, 0, 2, 2)
    groups = RowGroups(shards)
    read = [read_micro_batch(plan.micro_batch_at(number), groups, 0) for number in range(6)]
    prompts = {prompt for values in read for prompt in values["prompts"]}
    assert prompts == {"a row", *(f"picture {number}" for number in range(11))}
    storage.remove(f"{shards}/{manifest.row_groups[0].file}")
    with pytest.raises(DataError, match="no such file, but the manifest names it"):
        RowGroups(shards).row(plan.micro_batch_at(0).rows[0])


def test_failing_storage_stops_prepare_and_puts_nothing_into_quarantine(
    bucket: str, faults: Faults, ray_cluster: None
) -> None:
    for number in range(3):
        storage.write_bytes(f"{bucket}/tired/{number}.png", png(picture(number)))
        storage.write_bytes(f"{bucket}/tired/{number}.txt", b"x")
    faults.add("expired", path="tired/1.png", times=1000)
    with pytest.raises(StorageError, match=r"tired/1.png: .*expired"):
        prepare(f"{bucket}/tired", f"{bucket}/shards-tired", SETTINGS)


def test_credentials_in_a_path_are_refused_and_not_repeated() -> None:
    for path in ("s3://key:secret@bucket/x", "s3://key:sec/ret@bucket/x"):
        with pytest.raises(DataError, match="credentials in a path") as caught:
            storage.read_bytes(path)
        assert "ret" not in str(caught.value).replace("SECRET", "").replace("secret in", "")
