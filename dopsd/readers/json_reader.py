"""The one reader of JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from dopsd import shown
from dopsd.errors import DataError, DopsdError
from dopsd.readers.text import MOST_BYTES, check_unicode, decoded, read_payload

T = TypeVar("T")
Object = dict[str, Any]
"""Any object of JSON."""


def json_value(payload: bytes | str) -> Any:
    """The value of a text of JSON. Raises ValueError with what is wrong and its place."""
    text = decoded(payload) if isinstance(payload, bytes) else payload
    if not text.strip():
        raise ValueError("empty, allowed: JSON")
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except ValueError as error:  # a number of thousands of digits, or a key that is there twice
        raise ValueError(f"not JSON: {shown.line(error)}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def parse_json(
    payload: bytes | str,
    where: str,
    shape: type[T],
    error: type[DopsdError] = DataError,
) -> T:
    """A text of JSON as a ``shape``: a type, a TypedDict or a model of pydantic.

    Raises ``error`` with ``where``, the place in it, what was found and what is allowed.
    """
    try:
        value = json_value(payload)
        check_unicode(value)
    except ValueError as problem:
        raise error(f"{where}: {problem}") from None
    return checked(value, where, shape, error)


def read_json(
    path: str,
    shape: type[T],
    error: type[DopsdError] = DataError,
    where: str | None = None,
    most: int = MOST_BYTES,
) -> T:
    """A file of JSON, local or s3://, as :func:`parse_json`; ``where`` names it, by default its
    path. Raises ``error`` as :func:`parse_json` and :func:`read_payload` do, and StorageError."""
    where = where or path
    return parse_json(read_payload(path, error, where, most), where, shape, error)


def checked(value: Any, where: str, shape: type[T], error: type[DopsdError]) -> T:
    """A value that was read as a ``shape``. Raises ``error`` as :func:`parse_json`."""
    try:
        return cast(T, _adapter(cast(Hashable, shape)).validate_python(value))
    except ValidationError as problem:
        raise error(f"{where}: {_first(problem)}") from None


@lru_cache(maxsize=64)
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _first(problem: ValidationError) -> str:
    """The first thing that is wrong, by its key."""
    first = problem.errors(include_url=False)[0]
    place = shown.brief(shown.line(".".join(str(part) for part in first["loc"])))
    head = f"{place}: " if place else ""
    if first["type"] == "missing":
        return f"{head}missing"
    if first["type"] == "extra_forbidden":
        return f"{head}unknown"
    message = first["msg"]
    allowed = (message[0].lower() + message[1:]).removeprefix("input should be ")
    found = first["input"]
    what = type(found).__name__ if isinstance(found, dict | list) else shown.value(found)
    return f"{head}found {what}, allowed: {shown.line(allowed, 200)}"


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown.value(key)} is there twice, allowed: once")
            seen.add(key)
    return values
