"""The list that captions are appended to, a line for each picture, as `data.source` reads it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dopsd import shown
from dopsd.data.sources.columns import CAPTIONED_BY
from dopsd.data.sources.rows import ByteRange, SourceRow
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.lease import LEASE
from dopsd.run_folder.lines import parse_lines

SUFFIX = ".jsonl"
_BEGINS = b'{"id": "'
"""Every line of ours."""
Key = tuple[str, str]
"""(id, path) of a picture."""


def entry_of(
    row: SourceRow, captions: Mapping[str, str], out: str, by: str | None
) -> dict[str, Any]:
    """A line of the list ``out``: the sample as its source has it, with ``captions``.

    ``by``: what wrote the asked one; None where the source has it.
    """
    assert row.image is not None, "only pictures get captions"
    entry: dict[str, Any] = {"id": row.sample_id, "image": _path(row.image, out)}
    if row.concept:
        entry["concept"] = row.concept
    if row.references:
        entry["references"] = [_path(part, out) for part in row.references]
    if row.mask is not None:
        entry["mask"] = _path(row.mask, out)
    entry["captions"] = dict(captions)
    if by is not None:
        entry[CAPTIONED_BY] = by
    return entry


def key_of(entry: Mapping[str, Any]) -> Key:
    return entry["id"], entry["image"]


def check_list(out: str, source: str, key: str, by: str) -> dict[Key, dict[str, Any]]:
    """The lines of ``out`` that are there, by picture, none where there is no such file yet.

    Raises ConfigError where ``out`` is no local .jsonl that can be written, or holds anything but
    captions ``key`` written ``by`` the same: nothing of somebody else's is added to.
    """
    if storage.is_remote(out):
        raise ConfigError(f"--out: {out}, allowed: a local file, which can be appended to")
    if not out.endswith(SUFFIX):
        raise ConfigError(f"--out: {out}, allowed: a file that ends in {SUFFIX}")
    if os.path.abspath(out) == os.path.abspath(source):
        raise ConfigError(f"--out: {out} is SOURCE itself; allowed: another file")
    storage.check_file("--out", out)
    if not storage.taken(out):
        return {}
    if not os.path.isfile(out) or os.path.islink(out):
        raise ConfigError(f"--out: {out} is no file, or a link; allowed: another path")
    content = storage.read_bytes(out)
    read = parse_lines(content, _ours(key))
    problem = read.told() if read.damage else _foreign_end(content, key)
    if problem:
        raise ConfigError(
            f"--out: {out} holds what `dopsd caption --key {key}` did not write: {problem}; "
            "allowed: another file"
        )
    others = {str(entry.get(CAPTIONED_BY, by)) for entry in read.entries} - {by}
    if others:
        raise ConfigError(
            f"--out: {out} holds captions by {shown.value(min(others))}, these would be by {by}; "
            "allowed: the same --vlm, --question and --subject, or another file"
        )
    return {key_of(entry): entry for entry in read.entries}


def check_claim(folder: str, out: str) -> None:
    """Raises ConfigError where something of somebody else's has the place of the ``folder`` that
    claims ``out`` while it is written."""
    if os.path.islink(folder) or not (os.path.isdir(folder) or not os.path.lexists(folder)):
        found = "is no folder"
    elif others := sorted(name for name in storage.names(folder) if not name.startswith(LEASE)):
        found = f"holds {shown.value(others[0])}, which dopsd did not make"
    else:
        return
    raise ConfigError(
        f"--out: {folder}, by which dopsd claims {out}, {found}; allowed: another --out, or moving "
        "it away"
    )


def _foreign_end(content: bytes, key: str) -> str:
    """Why what stands behind the last end of a line is no line of ours that was cut off, and would
    go when the list is written on; "" where it is one, or nothing."""
    rest = content.rpartition(b"\n")[2].strip()
    # A line that lacks nothing but its end is judged as the others are.
    if not rest or (rest.endswith(b"}") and not parse_lines(rest + b"\n", _ours(key)).damage):
        return ""
    ours = rest.startswith(_BEGINS) or _BEGINS.startswith(rest)
    return "" if ours and not rest.endswith(b"}") else "a last line without an end"


def refuse_another_source(
    out: str, source: str, known: Collection[Key], listed: Collection[Key]
) -> None:
    """Raises ConfigError where ``out``, which is named after its source, holds captions and not one
    of the pictures that are ``listed``: two sources of one name."""
    if known and not {*known} & {*listed}:
        raise ConfigError(
            f"--out: {out} holds captions of {len(known)} pictures, such as {min(known)[1]}, and "
            f"none of {source}; allowed: another file (--out {out} adds to this one)"
        )


def _ours(key: str) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: _is_ours(entry, key)


def _is_ours(entry: dict[str, Any], key: str) -> bool:
    captions = entry["captions"]
    texts = [entry["id"], entry["image"], entry.get(CAPTIONED_BY, ""), *captions.values()]
    return key in captions and all(isinstance(text, str) for text in texts)


def _path(part: ByteRange, out: str) -> str:
    """Relative where the picture lies below the list's folder, so that both may be moved."""
    folder = os.path.dirname(os.path.abspath(out))
    if storage.is_remote(part.path):
        return part.path
    path = os.path.abspath(part.path)
    inside = path.startswith(f"{folder.rstrip('/')}/")
    return posixpath.relpath(path, folder) if inside else path
