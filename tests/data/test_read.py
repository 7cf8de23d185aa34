"""Row groups that a process keeps: those of the data that is asked for, whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.data.planning.plan import RowRef
from dopsd.data.read import ReadSpec, RowGroups
from dopsd.data.schema import SCHEMA
from dopsd.errors import DataError

SPEC = ReadSpec(images=False)
SHARD = "shard-00000.parquet"


def write(folder: Path, caption: str, rows: int = 2) -> bytes:
    records = [
        {
            "sample_id": str(number),
            "concept": None,
            "captions": [("caption", caption)],
            "image": b"",
            "width": 32,
            "height": 32,
            "bucket": "32x32",
            "references": [],
        }
        for number in range(rows)
    ]
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    pq.write_table(
        table,
        folder / SHARD,
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return (folder / SHARD).read_bytes()


def caption(groups: RowGroups) -> str:
    return groups.row(RowRef(SHARD, 0, 0))["captions"]["caption"]


def test_readers_start_without_torch() -> None:
    code = "import sys, dopsd.data.read; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_caption_of_which_a_bit_has_turned_is_found(tmp_path: Path) -> None:
    content = write(tmp_path, "a dog")
    (tmp_path / SHARD).write_bytes(content.replace(b"a dog", b"a fog", 1))
    with pytest.raises(DataError, match=f"{SHARD}: not the shard that the manifest names: .*CRC"):
        caption(RowGroups(str(tmp_path), SPEC))


def test_a_shard_of_fewer_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a dog", rows=1)
    with pytest.raises(DataError, match="row group 0 ends before row 1"):
        RowGroups(str(tmp_path), SPEC).row(RowRef(SHARD, 0, 1))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"/{SHARD}: no such file, but the manifest names it$"):
        caption(RowGroups(str(tmp_path), SPEC))
