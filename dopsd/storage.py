"""Files under one path syntax: local folders and ``s3://``, through fsspec and s3fs.

Credentials and endpoint of S3 come from the usual environment variables
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

import fsspec
import pyarrow.fs as pafs

from dopsd.errors import DataError


def is_remote(path: str) -> bool:
    """True for a URL such as ``s3://bucket/key``."""
    return "://" in path


def join(folder: str, *parts: str) -> str:
    """Join path parts under a local folder or a URL."""
    return posixpath.join(folder, *parts)


def filesystem(path: str) -> tuple[Any, str]:
    """fsspec filesystem of ``path`` and the path inside it."""
    protocol = path.split("://", 1)[0] if is_remote(path) else "file"
    if protocol not in ("file", "s3"):
        raise DataError(f"{path}: protocol {protocol!r}, allowed: a local path or s3://")
    options: dict[str, Any] = {}
    if protocol == "s3" and os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = os.environ["AWS_ENDPOINT_URL"]
    fs = fsspec.filesystem(protocol, **options)
    return fs, fs._strip_protocol(path)


def arrow_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow filesystem of ``path`` and the path inside it (same credentials as above)."""
    fs, inner = filesystem(path)
    if not is_remote(path):
        return pafs.LocalFileSystem(), inner
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), inner


def exists(path: str) -> bool:
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def names(folder: str) -> set[str]:
    """Names of the files right inside a folder; none for a folder that is not there."""
    fs, inner = filesystem(folder)
    fs.invalidate_cache()  # s3fs remembers listings; the folder may have grown since
    if not fs.isdir(inner):
        return set()
    return {posixpath.basename(path) for path in fs.ls(inner, detail=False)}


def make_folder(path: str) -> None:
    """Create a local folder with its parents; S3 has none to create."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def read_bytes(path: str) -> bytes:
    fs, inner = filesystem(path)
    return bytes(fs.cat_file(inner))


def list_files(folder: str) -> list[tuple[str, int]]:
    """(path inside ``folder``, bytes) of every file under it, by path; a missing one is empty."""
    fs, inner = filesystem(folder)
    inner = inner.rstrip("/")
    fs.invalidate_cache()  # as in names
    found = fs.find(inner, detail=True)
    return sorted((path[len(inner) + 1 :], entry["size"]) for path, entry in found.items())


def write_bytes(path: str, data: bytes, durable: bool = False) -> None:
    """Write a file complete or not at all: a local one is renamed into place.

    ``durable``: return only when it would survive a power cut (S3 always does).
    """
    fs, inner = filesystem(path)
    if is_remote(path):
        fs.pipe_file(inner, data)
        return
    os.makedirs(os.path.dirname(inner) or ".", exist_ok=True)
    temporary = f"{inner}.tmp-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, inner)
    if durable:
        folder = os.open(os.path.dirname(inner) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove(path: str) -> None:
    """Remove a file or a folder with its contents; a missing one is no error."""
    fs, inner = filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)
