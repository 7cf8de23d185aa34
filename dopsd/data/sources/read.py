"""What users bring: a folder of pictures, tables or tars, or one list, table or tar.

Reading a source lists its samples; pixels are read later, in tasks. Nothing here raises for a
single bad row: the row carries its ``problem`` and ends up in quarantine.
"""

from __future__ import annotations

import posixpath

from dopsd.data.sources import arrow, image_files, lists, tars
from dopsd.data.sources.folder import read_folder
from dopsd.data.sources.lists import read_list
from dopsd.data.sources.parquet import list_parquet
from dopsd.data.sources.rows import Source
from dopsd.data.sources.saved import list_arrow
from dopsd.data.sources.settings import ReadSettings
from dopsd.data.sources.tars import list_tars
from dopsd.errors import DataError, message_line
from dopsd.files import storage

FILES = (*lists.SUFFIXES, ".parquet", arrow.SUFFIX, tars.SUFFIX)
"""Suffixes of the files that are sources by themselves."""
KINDS = "folder, .jsonl, .csv, .tsv, .parquet, .arrow or .tar file"


def read_source(source: str, settings: ReadSettings | None = None) -> Source:
    """List the samples of a folder or of a file of FILES, local or s3://; without masks where the
    settings say so.

    Raises DataError when ``source`` does not exist, is nothing of these, or holds no sample.
    """
    settings = settings or ReadSettings()
    try:
        listed = _read(source, settings)
    except DataError:
        raise
    except Exception as error:  # no credentials, no bucket, no permission
        reason = message_line(error).removeprefix(f"{source}: ")
        raise DataError(f"data.source: {source}: {reason}") from error
    if not listed.rows and not listed.groups:
        raise DataError("; ".join([f"data.source: {source}: no samples in it", *listed.notes]))
    if not settings.masks:
        listed.leave_masks()
    return listed


def _read(source: str, settings: ReadSettings) -> Source:
    fs, inner = storage.filesystem(source)
    fs.invalidate_cache()  # s3fs remembers listings; the source may have changed since
    suffix = posixpath.splitext(source)[1].lower()
    with storage.storage_errors(source):
        if suffix in FILES and fs.isfile(inner):
            files = [(posixpath.basename(source), source)]
            if suffix == ".parquet":
                return list_parquet(files, settings.columns, settings.texts)
            if suffix == arrow.SUFFIX:
                return list_arrow(files, {}, settings.columns, settings.texts)
            if suffix == tars.SUFFIX:
                return list_tars(files, settings)
            return read_list(source, settings)
        if fs.isdir(inner):
            return read_folder(source, settings)
        if fs.exists(inner):
            what = f"not a {KINDS}{_instead(suffix)}"
        elif suffix in FILES:
            what = "no such file"
        else:
            what = f"no such {KINDS}"
    raise DataError(f"data.source: {source}: {what}")


def _instead(suffix: str) -> str:
    """What to do about a file of another kind."""
    if suffix in image_files.SUFFIXES:
        return "; give the folder in which the picture lies"
    if suffix in (".gz", ".tgz", ".zip", ".7z", ".rar", ".zst", ".bz2", ".xz"):
        return "; unpack it first (a .tar is read as it is)"
    if suffix == ".json":
        return "; write one object a line into a .jsonl"
    return ""
