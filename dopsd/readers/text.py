"""Files as bytes and bytes as text, refused where they cannot be used."""

from __future__ import annotations

from typing import Any

from dopsd.errors import DataError, DopsdError, StorageError, message_line
from dopsd.files import storage

MOST_BYTES = 2**26
"""Of a file, where its reader names no other number."""

DEPTH = 100
"""Levels of lists and mappings in one another; parsers would end at some thousand in a traceback.
"""


def read_payload(path: str, error: type[DopsdError], where: str, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, local or s3://. Raises ``error``, in which ``where`` names it, for one
    that is missing, no regular file, not readable or larger than ``most``, and StorageError when
    the storage fails beyond all tries."""
    try:
        if (size := storage.size(path)) > most:
            raise error(f"{where}: {size} bytes, allowed: {most}")
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise error(f"{where}: no such file") from None
    except StorageError as problem:
        if storage.is_remote(path):
            raise
        reason = message_line(problem).removeprefix(f"{path}: ")
        raise error(f"{where}: cannot be read: {reason}") from None
    except ValueError as problem:  # no regular file, or a path that none can have
        reason = message_line(problem).removesuffix(f": {path}")
        raise error(f"{where}: cannot be read: {reason}, allowed: a file") from None


def read_text(
    path: str,
    error: type[DopsdError] = DataError,
    where: str | None = None,
    most: int = MOST_BYTES,
) -> str:
    """A file of text, as :func:`read_payload` and :func:`decoded`."""
    where = where or path
    payload = read_payload(path, error, where, most)
    try:
        return decoded(payload)
    except ValueError as problem:
        raise error(f"{where}: {problem}") from None


def decoded(payload: bytes) -> str:
    """The text of a file in UTF-8, with or without a mark at its start. Raises ValueError with the
    place of what is no text."""
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    if (place := text.find("\0")) >= 0:
        number = text.count("\n", 0, place) + 1
        raise ValueError(f"line {number}: a NUL character (cut off by a power cut?)")
    return text


def check_unicode(value: Any) -> None:
    """Raises ValueError for a text with half of a surrogate pair, which no file can hold."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("a text that is not Unicode: half of a surrogate pair") from None
