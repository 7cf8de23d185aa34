"""Captions in files beside the pictures: .txt, .caption and .json, read as the settings say."""

from __future__ import annotations

import posixpath
from typing import Any

from dopsd.config.data import CAPTION_FILES
from dopsd.data.sources.columns import columns_of, named_values
from dopsd.data.sources.encodings import decoded
from dopsd.data.sources.fields import MAX_CAPTION_BYTES, captions_in, one_line, shown
from dopsd.data.sources.rows import CAPTION_KEY
from dopsd.data.sources.settings import ReadSettings
from dopsd.files import storage
from dopsd.readers import json_value

MAX_JSON_BYTES = 2**20
"""Of a .json beside a picture: other programs keep all they know of it there."""
SUFFIXES = tuple(f".{kind}" for kind in CAPTION_FILES)


def read_caption_file(path: str, settings: ReadSettings) -> tuple[dict[str, str], bool]:
    """(captions by key, whether the text has several lines) of a file of one of SUFFIXES.

    Raises ValueError with a reason, FileNotFoundError and StorageError.
    """
    suffix = posixpath.splitext(path)[1].lower()
    most = MAX_JSON_BYTES if suffix == ".json" else MAX_CAPTION_BYTES
    if (size := storage.size(path)) > most:
        raise ValueError(f"caption too long: {size} bytes, allowed: {most}")
    return captions_of_bytes(storage.read_bytes(path), suffix, settings)


def captions_of_bytes(
    data: bytes, suffix: str, settings: ReadSettings, key: str = CAPTION_KEY
) -> tuple[dict[str, str], bool]:
    """As :func:`read_caption_file`, of the bytes of a file that ends in ``suffix``; ``key`` is that
    of a text. Empty captions are left out."""
    try:
        text = decoded(data, settings.caption_encoding)
    except ValueError as error:
        raise ValueError(f"caption is {error}") from None
    if suffix == ".json":
        captions = _of_json(text, settings)
        return {name: words for name, words in captions.items() if words}, False
    lines = [line for line in map(one_line, text.splitlines()) if line]
    if settings.caption_lines == "captions":
        keys = (key if number == 1 else f"{key}_{number}" for number in range(1, len(lines) + 1))
        return dict(zip(keys, lines)), len(lines) > 1
    return ({key: one_line(text)} if lines else {}), len(lines) > 1


def _of_json(text: str, settings: ReadSettings) -> dict[str, str]:
    try:
        record: Any = json_value(text)
    except ValueError as error:
        raise ValueError(f"caption: {error}") from None
    if isinstance(record, str):
        return {CAPTION_KEY: one_line(record)}
    if not isinstance(record, dict):
        raise ValueError(f"caption: found {type(record).__name__}, allowed: an object of JSON")
    columns = columns_of(record.keys(), settings.columns)
    captions = captions_in(named_values(record, columns))
    if not captions:
        found = ", ".join(map(shown, list(record)[:8])) or "nothing"
        raise ValueError(
            f"missing caption: its .json has {found}, allowed: caption, text, prompt or tags "
            "(or data.columns={caption: ...})"
        )
    return captions
