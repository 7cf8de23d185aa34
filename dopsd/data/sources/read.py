"""What users bring: a folder of images or of .parquet files, a .parquet file, or a .jsonl file.

Reading a source lists its samples; pixels are read later, in tasks. Nothing here raises for a
single bad row: the row carries its ``problem`` and ends up in quarantine.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from dopsd import storage
from dopsd.data.sources.folder import read_folder
from dopsd.data.sources.jsonl import read_jsonl
from dopsd.data.sources.parquet import list_parquet
from dopsd.data.sources.rows import Source
from dopsd.errors import DataError, message_line


def read_source(source: str, columns: Mapping[str, str] | None = None) -> Source:
    """List the samples of a folder, a .jsonl or a .parquet file, local or s3://.

    ``columns``: field -> its name in .jsonl and .parquet files, where it is another one. Raises
    DataError when ``source`` does not exist, is nothing of these, or holds no sample.
    """
    try:
        listed = _read(source, columns or {})
    except DataError:
        raise
    except Exception as error:  # no credentials, no bucket, no permission
        reason = message_line(error).removeprefix(f"{source}: ")
        raise DataError(f"data.source: {source}: {reason}") from error
    if not listed.rows and not listed.groups:
        raise DataError(f"data.source: {source}: no samples in it")
    return listed


def _read(source: str, columns: Mapping[str, str]) -> Source:
    fs, inner = storage.filesystem(source)
    fs.invalidate_cache()  # s3fs remembers listings; the source may have changed since
    with storage.storage_errors(source):
        if source.endswith((".jsonl", ".parquet")) and fs.isfile(inner):
            if source.endswith(".jsonl"):
                return read_jsonl(source, columns)
            return list_parquet([(posixpath.basename(source), source)], columns)
        if fs.isdir(inner):
            return read_folder(source, columns)
        if fs.exists(inner):
            what = "not a folder, .jsonl or .parquet file"
        elif source.endswith((".jsonl", ".parquet")):
            what = "no such file"
        else:
            what = "no such folder, .jsonl or .parquet file"
    raise DataError(f"data.source: {source}: {what}")
