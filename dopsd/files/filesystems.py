"""The file system behind a path: how it is reached, and what it refuses in one line."""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec

from dopsd.credentials import holds_credentials
from dopsd.errors import DataError, DopsdError, StorageError, message_line
from dopsd.files.disk import free_space

CONNECT_S = 10
READ_S = 30
"""Seconds without a byte after which a request counts as failed and is tried again."""
ATTEMPTS = 5
"""Tries of one request with growing pauses, and s3fs tries that five times: an outage of some
twenty seconds is outlived. AWS_MAX_ATTEMPTS overrides it."""
_HINTS = {"400": "often expired credentials", "403": "no permission, or wrong credentials"}
"""What stands behind the status of an answer without a body."""


def is_remote(path: str) -> bool:
    """True for a URL such as ``s3://bucket/key``."""
    return "://" in path


def filesystem(path: str) -> tuple[Any, str]:
    """fsspec filesystem of ``path`` and the path inside it."""
    if "\0" in path:
        raise DataError(f"{path}: a NUL character, allowed: a path without")
    protocol = path.split("://", 1)[0] if is_remote(path) else "file"
    if protocol not in ("file", "s3"):
        raise DataError(f"{path}: protocol {protocol!r}, allowed: a local path or s3://")
    if protocol == "file":
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(path)
    if holds_credentials(path):
        # Not even the bucket is repeated: a secret may hold "@" and "/".
        raise DataError(
            "s3://***@...: credentials in a path, allowed: s3://bucket/key with credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    retries: dict[str, Any] = {}
    if not os.environ.get("AWS_RETRY_MODE"):
        retries["mode"] = "standard"
    if not os.environ.get("AWS_MAX_ATTEMPTS"):
        retries["total_max_attempts"] = ATTEMPTS
    options: dict[str, Any] = {
        "config_kwargs": {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": retries,
        },
        # s3fs reads the parts of a large object side by side, but does not try such a part again.
        "max_concurrency": 1,
        # What it remembers of a folder others have changed since.
        "use_listings_cache": False,
    }
    if os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = os.environ["AWS_ENDPOINT_URL"]
    fs = fsspec.filesystem(protocol, **options)
    return fs, fs._strip_protocol(path)


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Whatever goes wrong with ``path`` becomes one line.

    Raises StorageError for all but a missing file (FileNotFoundError, as it is) and our own
    errors. Of a local path that is what the system says, an OSError.
    """
    try:
        yield
    except (DopsdError, FileNotFoundError):
        raise
    except OSError as error:
        if is_remote(path):
            raise StorageError(f"{path}: {_cause(error)}") from error
        raise StorageError(local_error(path, error)) from error
    except Exception as error:  # s3fs, botocore and aiohttp raise many kinds
        if not is_remote(path):
            raise
        raise StorageError(f"{path}: {_cause(error)}") from error


def local_error(path: str, error: OSError) -> str:
    """What a local file system refused, in one line: path, cause, and the disk."""
    code = errno.errorcode.get(error.errno or 0)
    cause = f"{os.strerror(error.errno)} ({code})" if error.errno and code else message_line(error)
    return f"{path}: {cause}; {free_space(path)}"


def _cause(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, fsspec.asyn.FSTimeoutError)):
        return f"the storage does not answer in time ({type(error).__name__})"
    origin = error.__cause__
    code = getattr(origin, "response", {}).get("Error", {}).get("Code", "")
    text = " ".join(str(error).split()) or type(error).__name__
    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
    return (f"{code}: {text}" if code and code not in text else text) + hint


def open_local(path: str) -> IO[bytes]:
    """A regular file to read: a pipe in its place would be waited for forever. Raises
    FileNotFoundError or StorageError."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind != stat.S_IFREG:
                what = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}.get(kind, "a device")
                raise StorageError(f"{path}: {what}, allowed: a regular file")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def temporary_name(path: str) -> str:
    """What a file is written as before it is whole: of nobody else's making."""
    return f"{path}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextmanager
def local_file(path: str) -> Iterator[IO[bytes]]:
    """A local file to write, which is at ``path`` when the block ends well and never before; its
    folder is made. Raises StorageError, which names ``path`` and not what it is until then."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:  # also where nothing can be made, as in /proc: it is no missing file
        raise StorageError(local_error(folder, error)) from error
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # on a full disk it would take what others need
            os.unlink(temporary)
        # What the block reads has errors of its own, with other names.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise StorageError(local_error(path, error)) from error
        raise


class RemoteWriter(io.RawIOBase):
    """A remote file that goes up in parts; its errors are those of :func:`storage_errors`."""

    def __init__(self, path: str) -> None:
        self._path = path
        fs, inner = filesystem(path)
        with storage_errors(path):
            self._file = fs.open(inner, "wb")

    def write(self, data: Any) -> int:
        with storage_errors(self._path):
            return int(self._file.write(data))

    def tell(self) -> int:
        return int(self._file.tell())

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            super().close()
            with storage_errors(self._path):
                self._file.close()

    def discard(self) -> None:
        """End without a file; what has gone up is forgotten, as far as the storage can be asked."""
        if not self.closed:
            super().close()
            with suppress(Exception):
                self._file.discard()
