"""Files that are written piece by piece and are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from dopsd.files.filesystems import RemoteWriter, filesystem, is_remote, local_file, storage_errors
from dopsd.files.storage import OPERATION_S, PART, ask_guards, sync


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A file to write piece by piece, which is at ``path`` when the block ends well and never
    before. On its way to S3 it lies in the folder for temporary files."""
    ask_guards(path)
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as spool:
            yield spool
            spool.flush()
            fs, inner = filesystem(path)
            with storage_errors(path):
                fs.put_file(
                    spool.name, inner, chunksize=PART, max_concurrency=4, timeout=OPERATION_S
                )
        return
    with local_file(path) as file:
        yield file


@contextmanager
def streamed_file(path: str) -> Iterator[IO[bytes]]:
    """As :func:`whole_file`, for files that are too large to lie anywhere on their way: to S3 they
    go up in parts as they are written. A local one would survive a power cut."""
    ask_guards(path)
    if is_remote(path):
        writer = RemoteWriter(path)
        try:
            yield writer  # type: ignore[misc]
        except BaseException:
            writer.discard()
            raise
        writer.close()
        return
    with whole_file(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync(os.path.dirname(path) or ".")
