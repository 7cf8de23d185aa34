"""Files under one path syntax: local folders and ``s3://``, through fsspec and s3fs.

Credentials and endpoint of S3 come from the usual environment variables
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...). What passes (throttling, a
server's 5xx, a dropped connection) is tried again with back-off, every wait has a deadline, and
what stays becomes one StorageError that names path and cause; of a local file also its disk.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import pyarrow as pa

from dopsd.credentials import redact
from dopsd.errors import StorageError
from dopsd.files.filesystems import RemoteWriter, local_error, local_file, open_local
from dopsd.files.filesystems import filesystem as filesystem
from dopsd.files.filesystems import is_remote as is_remote
from dopsd.files.filesystems import storage_errors as storage_errors
from dopsd.files.filesystems import temporary_name as temporary_name
from dopsd.files.writable import check_file as check_file
from dopsd.files.writable import check_writable as check_writable

OPERATION_S = 1800
"""Seconds that reading or writing one object may take, tries included: a server that sends a byte
now and then is found by this alone."""
PART = 2**24
"""Bytes of a part (16 MiB): what is at least two of them goes up in parts, four at a time."""
_SIDE_BY_SIDE = 16
"""Objects that are removed at a time."""
TEMPORARY = re.compile(r"(.+)\.tmp-\d+-[0-9a-f]{8}")
"""Name of what a local file is written as before it is whole: of nobody else's making."""
RECORDS = (".json", ".jsonl", ".yaml", ".html", ".md", ".txt", ".log", ".svg")
"""Names of files for people and programs to read, which leave their secrets where they are written.
"""
SET_ASIDE = ".damaged"
"""Behind the name of a file that was moved out of the way."""
guards: list[Callable[[str], None]] = []
"""Called with every path before this process writes or removes something there; what one raises is
raised. A lease that was lost ends its holder here (lease.py)."""


def ask_guards(path: str) -> None:
    """Raises what a guard raises of a path that this process is about to write or remove."""
    for guard in list(guards):
        guard(path)


def join(folder: str, *parts: str) -> str:
    """Join path parts under a local folder or a URL."""
    return posixpath.join(folder, *parts)


class _Reader(io.RawIOBase):
    """A remote file that reads exactly what is asked for, each time with tries and a deadline.

    The file objects of s3fs read 50 MiB ahead and wait without end.
    """

    def __init__(self, path: str) -> None:
        self._path, self._offset, self._size = path, 0, size(path)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._offset + len(view), self._size)
        data = read_bytes(self._path, self._offset, stop) if stop > self._offset else b""
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        self._offset = base + offset
        return self._offset

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def open_binary(path: str) -> IO[bytes]:
    """A file to read from the start, line by line. Raises FileNotFoundError or StorageError."""
    if is_remote(path):
        return io.BufferedReader(_Reader(path), 2**22)
    return open_local(path)


def open_input(path: str) -> pa.NativeFile:
    """A file for pyarrow to read at random. Raises FileNotFoundError or StorageError."""
    if is_remote(path):
        return pa.PythonFile(_Reader(path), mode="r")
    open_local(path).close()
    with storage_errors(path):
        return pa.OSFile(path, "rb")


def open_output(path: str) -> pa.NativeFile:
    """A file for pyarrow to write; its folder is made. On S3 it appears when it is closed."""
    ask_guards(path)
    if is_remote(path):
        return pa.PythonFile(RemoteWriter(path), mode="w")
    make_folder(os.path.dirname(path) or ".")
    with storage_errors(path):
        return pa.OSFile(path, "wb")


def exists(path: str) -> bool:
    fs, inner = filesystem(path)
    with storage_errors(path):
        return bool(fs.exists(inner))


def taken(path: str) -> bool:
    """Whether anything has this name, be it a link that leads nowhere."""
    return exists(path) or (not is_remote(path) and os.path.lexists(path))


def size(path: str) -> int:
    """Bytes of a file. Raises FileNotFoundError, or ValueError for a folder, pipe or device."""
    fs, inner = filesystem(path)
    with storage_errors(path):
        entry = fs.info(inner)
    # Of a local link the entry tells about what it leads to; a pipe would be waited for forever.
    if entry["type"] != "file":
        raise ValueError(f"not a regular file: {path}")
    return int(entry["size"])


def names(folder: str) -> set[str]:
    """Names of the files right inside a folder; none for a folder that does not exist."""
    fs, inner = filesystem(folder)
    fs.invalidate_cache()  # s3fs remembers listings; the folder may have grown since
    with storage_errors(folder):
        if not fs.isdir(inner):
            return set()
        # S3's consoles mark a folder by an object of no name.
        return {posixpath.basename(path) for path in fs.ls(inner, detail=False)} - {""}


def make_folder(path: str) -> None:
    """Create a local folder with its parents; S3 has none to create."""
    if not is_remote(path):
        with storage_errors(path):
            os.makedirs(path, exist_ok=True)


def read_bytes(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """A whole file, or its bytes from ``start`` up to ``stop``.

    Raises FileNotFoundError, or StorageError when the storage fails beyond all tries.
    """
    fs, inner = filesystem(path)
    with storage_errors(path):
        if is_remote(path):
            return bytes(fs.cat_file(inner, start=start, end=stop, timeout=OPERATION_S))
        with open_local(inner) as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))


def read_parts(path: str, part: int = 2**26) -> Iterator[bytes]:
    """A file's bytes, ``part`` at a time. Raises as :func:`read_bytes` does."""
    end = size(path)
    for start in range(0, end, part):
        yield read_bytes(path, start, min(start + part, end))


def list_files(folder: str) -> list[tuple[str, int]]:
    """(path inside ``folder``, bytes) of every file under it, by path; a missing one is empty."""
    fs, inner = filesystem(folder)
    inner = inner.rstrip("/")
    fs.invalidate_cache()  # as in names
    with storage_errors(folder):
        entries = fs.find(inner, detail=True)
    return sorted((path[len(inner) + 1 :], entry["size"]) for path, entry in entries.items())


def as_written(path: str, data: bytes) -> bytes:
    """What :func:`write_bytes` makes of it: a record without secrets."""
    if not path.endswith(RECORDS):
        return data
    return redact(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def write_bytes(path: str, data: bytes, durable: bool = False, verbatim: bool = False) -> None:
    """Write a file complete or not at all: a local one is renamed into place.

    ``durable``: return only when it would survive a power cut (S3 always does). ``verbatim``: a
    text that is data, such as prompts that train, and no record (``RECORDS``), out of which
    credentials are taken.
    """
    ask_guards(path)
    if not verbatim:
        data = as_written(path, data)
    fs, inner = filesystem(path)
    if is_remote(path):
        with storage_errors(path):
            fs.pipe_file(inner, data, chunksize=PART, max_concurrency=4, timeout=OPERATION_S)
        return
    with local_file(inner) as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:  # the folder may be as new as the file
        folder = os.path.dirname(inner) or "."
        sync(folder)
        sync(os.path.dirname(folder) or ".")


def move(source: str, target: str) -> None:
    """Give a file another name, in whose place another file may be; on S3, where it is a copy, the
    storage makes it. Raises StorageError."""
    ask_guards(target)
    fs, inner = filesystem(target)
    with storage_errors(target):
        if is_remote(target):
            fs.cp_file(filesystem(source)[1], inner, timeout=OPERATION_S)
            fs.rm_file(filesystem(source)[1], timeout=OPERATION_S)
            return
        os.replace(source, target)
    sync(os.path.dirname(target) or ".")


def create(path: str, data: bytes) -> bool:
    """Write a small file where none is; returns whether it was written, which of all who try is
    told to one. A local file is empty for a moment. An S3 that knows no conditional writes lets a
    later one win: who is told True there has to look again."""
    data = as_written(path, data)
    fs, inner = filesystem(path)
    if not is_remote(path):
        make_folder(os.path.dirname(inner) or ".")
        try:
            file = open(inner, "xb")  # noqa: SIM115
        except FileExistsError:
            return False
        except OSError as error:
            raise StorageError(local_error(path, error)) from error
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # such as a full disk
            with suppress(OSError):
                os.unlink(inner)
            raise
        return True
    with storage_errors(path):
        try:
            fs.pipe_file(inner, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            if error.errno != errno.ENOSYS:
                raise
            fs.invalidate_cache()
            if fs.exists(inner):
                return False
            fs.pipe_file(inner, data)
    return True


def sync(path: str) -> None:
    """Make what was written to a local file or folder survive a power cut."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: str) -> None:
    """Remove one file, of a link the link itself; a missing one is no error.

    A name is a name: ``[V]-cat`` is no pattern. Raises IsADirectoryError or PermissionError for a
    local folder: a tree goes file by file, by what a record lists (room ``ownership``).
    """
    ask_guards(path)
    fs, inner = filesystem(path)
    with storage_errors(path):
        if is_remote(path):
            fs.rm_file(inner)
            fs.invalidate_cache()
        else:
            with suppress(FileNotFoundError):
                os.unlink(inner)


def remove_if_empty(folder: str) -> None:
    """Remove a local folder that holds nothing; a link to one stays, and S3 has none to remove."""
    if not is_remote(folder):
        with suppress(OSError):  # it is missing, a link, or holds something
            os.rmdir(folder)


def remove_tree(path: str) -> None:
    """Remove a folder with all it holds; a missing one is no error. Only for what holds nothing but
    scratch (``dopsd/ownership/scratch.py``)."""
    fs, inner = filesystem(path)
    with storage_errors(path):
        if is_remote(path):
            # Key by key, since fs.rm would expand the path.
            with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
                list(pool.map(fs.rm_file, fs.find(inner)))
            fs.invalidate_cache()
        elif fs.exists(inner):
            fs.rm(inner, recursive=True)


def set_aside(path: str) -> str:
    """Move whatever is at ``path`` out of the way, beside it, and return its new name's path. It
    takes no room on a local disk; nothing there is replaced."""
    ask_guards(path)
    there = names(os.path.dirname(path) or ".")
    name = posixpath.basename(path) + SET_ASIDE
    free = name
    number = 1
    while free in there:
        number += 1
        free = f"{name}-{number}"
    target = join(posixpath.dirname(path), free)
    fs, inner = filesystem(path)
    with storage_errors(path):
        if is_remote(path):
            fs.cp_file(inner, filesystem(target)[1])
            fs.rm_file(inner)
        else:
            os.rename(path, target)
    return target


def move_folder(source: str, target: str, last: str) -> None:
    """Move a folder with all it holds to ``target``, where nothing is yet; it is complete there as
    soon as it has the file ``last``. On S3 the other files go in order of their names.

    When somebody else was first, their folder stays and ``source`` is left where it is. Raises
    OSError for a local ``target`` that holds something else.
    """
    ask_guards(target)
    if is_remote(source):
        fs, start = filesystem(source)
        _, end = filesystem(target)
        with storage_errors(target):
            for name in sorted((name for name, _ in list_files(source)), key=last.__eq__):
                fs.cp_file(f"{start}/{name}", f"{end}/{name}")  # fs.copy would expand the path
        remove_tree(source)
        return
    try:
        os.rename(source, target)
    except OSError:
        if not exists(join(target, last)):
            raise
