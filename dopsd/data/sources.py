"""What users bring: a folder of images with .txt captions, or a .jsonl file.

Reading a source lists its samples; pixels are read later, in tasks. Nothing here raises for a
single bad row: the row carries its ``problem`` and ends up in quarantine.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dopsd import storage
from dopsd.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_KEY = "caption"
"""Key of a caption that came without one."""
_FIELDS = ("image", "captions", "caption", "text", "id", "concept", "references")


_REFERENCE = re.compile(r"(.+)\.ref(\d+)")
"""Stem of a reference picture in a folder."""


@dataclass
class SourceRow:
    """One sample as listed. ``where`` names it to the user: a file, or file:line.

    ``captions`` is filled from JSONL; for folders ``caption_file`` names the text to be read.
    """

    where: str
    sample_id: str
    image: str = ""
    concept: str | None = None
    references: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    caption_file: str | None = None
    problem: str | None = None


@dataclass
class Source:
    """The samples of a source in a fixed order, and what was left aside (``notes``)."""

    rows: list[SourceRow]
    notes: list[str]


def read_source(source: str) -> Source:
    """List the samples of a folder or a .jsonl file, local or s3://.

    Raises DataError when ``source`` does not exist, is neither of the two, or holds no sample.
    """
    try:
        found = _read(source)
    except DataError:
        raise
    except Exception as error:  # s3fs and botocore raise many kinds: no credentials, no bucket
        raise DataError(f"data.source: {source}: {' '.join(str(error).split())}") from error
    if not found.rows:
        raise DataError(f"data.source: {source}: no samples in it")
    return found


def _read(source: str) -> Source:
    fs, inner = storage.filesystem(source)
    fs.invalidate_cache()  # s3fs remembers listings; the source may have changed since
    if source.endswith(".jsonl"):
        if not fs.isfile(inner):
            raise DataError(f"data.source: {source}: no such file")
        return _read_jsonl(source)
    if fs.isdir(inner):
        return _read_folder(source)
    what = "not a folder or .jsonl file" if fs.exists(inner) else "no such folder or .jsonl"
    raise DataError(f"data.source: {source}: {what}")


def read_caption_file(path: str) -> str:
    """The text of a caption file without surrounding blanks. Raises ValueError with a reason."""
    try:
        return storage.read_bytes(path).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"caption is not UTF-8 ({error.reason} at byte {error.start})") from None


# -- folders ---------------------------------------------------------------------------------


def _read_folder(folder: str) -> Source:
    """Images at any depth with ``STEM.txt`` beside them; ``sample_id`` is the path without suffix.

    ``concept`` is the name of the first-level sub-folder; images at the top have none. Pictures
    ``STEM.ref1.png``, ``STEM.ref2.jpg`` ... beside an image are its references, in the order of
    their numbers. Hidden files and folders are skipped.
    """
    prefix = "s3://" if storage.is_remote(folder) else ""
    fs, inner = storage.filesystem(folder)
    images: list[tuple[str, str]] = []
    texts: dict[str, str] = {}
    others = 0
    for path in sorted(fs.find(inner)):
        name = posixpath.relpath(path, inner)
        if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
            continue
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            images.append((name, prefix + path))
        elif suffix.lower() == ".txt":
            texts[stem] = prefix + path
        else:
            others += 1
    stems = {posixpath.splitext(name)[0] for name, _ in images}
    references: dict[str, list[tuple[int, str]]] = {}
    rows = []
    for name, path in images:
        stem = posixpath.splitext(name)[0]
        if (found := _REFERENCE.fullmatch(stem)) and found[1] in stems:
            references.setdefault(found[1], []).append((int(found[2]), path))
            continue
        concept = name.split("/")[0] if "/" in name else None
        row = SourceRow(name, stem, path, concept, caption_file=texts.get(stem))
        if row.caption_file is None:
            row.problem = f"missing caption: no {stem}.txt"
        rows.append(row)
    for row in rows:
        row.references = [path for _, path in sorted(references.get(row.sample_id, []))]
    pictured = {row.sample_id for row in rows}
    for stem in sorted(texts.keys() - pictured):
        problem = f"missing image: no picture beside {stem}.txt"
        rows.append(SourceRow(f"{stem}.txt", stem, problem=problem))
    notes = [f"{others} files are neither images nor .txt captions: left aside"] if others else []
    return Source(rows, notes)


# -- JSONL -----------------------------------------------------------------------------------


def _read_jsonl(path: str) -> Source:
    """One JSON object per line.

    ``image`` (path relative to the file, absolute, or s3://), captions as ``captions`` (a map
    key -> text, or one text), ``caption`` or ``text``; optional ``id`` (default: the image path
    without suffix), ``concept``, and ``references`` (a list of paths like ``image``). Other fields
    are left aside with a note.
    """
    fs, inner = storage.filesystem(path)
    folder, file = posixpath.split(path)
    rows: list[SourceRow] = []
    unknown: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    with fs.open(inner, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = SourceRow(f"{file}:{number}", "")
            rows.append(row)
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(values, dict):
                    raise ValueError(f"found {type(values).__name__}, allowed: an object")
                unknown.update(values.keys() - set(_FIELDS))
                _fill(row, values, folder, empty)
            except UnicodeDecodeError as error:
                row.problem = f"not UTF-8 ({error.reason} at byte {error.start})"
            except json.JSONDecodeError as error:
                row.problem = f"not JSON: {error.msg} at column {error.colno}"
            except ValueError as error:
                row.problem = str(error)
    notes = [f"field {key!r} is unknown: left aside in {n} rows" for key, n in unknown.items()]
    notes += [f"caption {key!r} is empty in {n} rows: left out there" for key, n in empty.items()]
    return Source(rows, sorted(notes))


def _fill(row: SourceRow, values: dict[str, Any], folder: str, empty: Counter[str]) -> None:
    """Read one object into ``row``; raises ValueError with the reason of a quarantine."""
    image = values.get("image")
    identity = values.get("id")
    if isinstance(identity, str | int) and not isinstance(identity, bool):
        row.sample_id = str(identity)
    elif identity is not None:
        raise ValueError(f"id: {identity!r}, allowed: a text or an integer")
    if image is None or image == "":
        raise ValueError("missing image: no field 'image'")
    if not isinstance(image, str):
        raise ValueError(f"image: {image!r}, allowed: a path")
    row.image = _beside(folder, image)
    row.sample_id = row.sample_id or posixpath.splitext(image)[0]
    concept = values.get("concept")
    if concept is not None and not isinstance(concept, str):
        raise ValueError(f"concept: {concept!r}, allowed: a text")
    row.concept = concept or None
    references = values.get("references") or []
    if not isinstance(references, list) or not all(isinstance(r, str) and r for r in references):
        raise ValueError(f"references: {references!r}, allowed: a list of paths")
    row.references = [_beside(folder, path) for path in references]
    captions = _captions(values)
    row.captions = {key: text for key, text in captions.items() if text}
    if not row.captions:
        raise ValueError("empty caption" if captions else "missing caption")
    empty.update(key for key, text in captions.items() if not text)


def _beside(folder: str, path: str) -> str:
    return path if storage.is_remote(path) else storage.join(folder, path)


def _captions(values: dict[str, Any]) -> dict[str, str]:
    """Stripped captions by key; a null is as good as absent."""
    found: dict[str, Any] = {}
    for name in ("text", "caption", "captions"):
        value = values.get(name)
        if isinstance(value, dict) and name == "captions":
            found.update(value)
        elif value is not None:
            found[CAPTION_KEY] = value
    for key, text in found.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"caption {key!r}: {text!r}, allowed: a text")
    return {key: text.strip() for key, text in found.items() if text is not None}
