"""A folder as a source: images with .txt captions beside them, and .parquet files."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dopsd import storage
from dopsd.data.manifest import MANIFEST, find_manifest
from dopsd.data.sources.fields import MAX_CAPTION_BYTES, check_name, printable
from dopsd.data.sources.parquet import list_parquet
from dopsd.data.sources.rows import ByteRange, Source, SourceRow
from dopsd.shown import line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_REFERENCE = re.compile(r"(.+)\.ref(\d+)", re.DOTALL)
"""Stem of a reference picture."""


@dataclass
class _Files:
    """The files of a folder by kind: name inside the folder -> path to open."""

    images: dict[str, str] = field(default_factory=dict)
    parquet: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """By name without suffix."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a file may not be opened."""
    manifests: list[str] = field(default_factory=list)
    """Names of what may be manifests of prepared shards."""
    notes: list[str] = field(default_factory=list)


def read_folder(folder: str, columns: Mapping[str, str]) -> Source:
    """Images at any depth with ``STEM.txt`` beside them; ``sample_id`` is the path without suffix.

    ``concept`` is the name of the first-level sub-folder; images at the top have none. Pictures
    ``STEM.ref1.png``, ``STEM.ref2.jpg`` ... beside an image are its references, in the order of
    their numbers. The rows of every ``.parquet`` file come besides; images beside such files are
    samples of their own only with a caption. Of prepared shards only those that their manifest
    names are read: other data lies beside them. Hidden files and folders are skipped.
    """
    files = _files(folder)
    missing = _keep_named(folder, files)
    stems = {posixpath.splitext(name)[0] for name in files.images}
    references: dict[str, list[tuple[int, str]]] = {}
    rows: list[SourceRow] = []
    left = 0
    for name, path in files.images.items():
        stem = posixpath.splitext(name)[0]
        if (match := _REFERENCE.fullmatch(stem)) and match[1] in stems:
            references.setdefault(match[1], []).append((int(match[2]), name))
            continue
        concept = name.split("/")[0] if "/" in name else None
        if stem not in files.texts and files.parquet:
            left += 1
            continue
        rows.append(
            SourceRow(name, stem, ByteRange(path), concept, caption_file=files.texts.get(stem))
        )
    if left:
        files.notes.append(
            f"{left} images without .txt captions: left to the rows of .parquet files"
        )
    for row in rows:
        shown = [name for _, name in sorted(references.get(row.sample_id, []))]
        row.references = [ByteRange(files.images[name]) for name in shown]
        opened = [row.where, f"{row.sample_id}.txt", *shown]
        row.problem = next((files.problems[n] for n in opened if n in files.problems), None)
        if row.problem is None and row.caption_file is None:
            row.problem = f"missing caption: no {row.sample_id}.txt"
    for stem in sorted(files.texts.keys() - {row.sample_id for row in rows}):
        problem = f"missing image: no picture beside {stem}.txt"
        rows.append(SourceRow(f"{stem}.txt", stem, problem=problem))
    closed = files.parquet.keys() & files.problems.keys()
    rows += [SourceRow(name, "", problem=files.problems[name]) for name in sorted(closed)]
    rows += missing
    for row in rows:
        _check_names(row)
    parquet = list_parquet(
        [(name, path) for name, path in files.parquet.items() if name not in closed], columns
    )
    return Source(rows + parquet.rows, files.notes + parquet.notes, parquet.groups)


def _keep_named(folder: str, files: _Files) -> list[SourceRow]:
    """Leave in folders of prepared shards only the parquet files that the manifest names; returns
    a problem for each that is not there. Manifests of others say nothing."""
    missing: list[SourceRow] = []
    seen: list[str] = []
    for name in sorted(files.manifests, key=lambda path: (path.count("/"), path)):
        inside = name.removesuffix(MANIFEST)
        if any(inside.startswith(outer) for outer in seen):
            continue  # beside shards that have one: the base's own samples
        if (manifest := find_manifest(storage.join(folder, inside))) is None:
            continue
        seen.append(inside)
        rows: Counter[str] = Counter()
        for group in manifest.row_groups:
            rows[inside + group.file] += group.rows
        below = {path for path in files.parquet if path.startswith(inside)}
        if others := below - rows.keys():
            files.notes.append(
                f"{len(others)} .parquet files that {name} does not name: left aside"
            )
        for path in others:
            del files.parquet[path]
        for path in sorted(rows.keys() - below):
            problem = f"missing file: {name} names it"
            missing.append(SourceRow(path, "", problem=problem, samples=rows[path]))
    return missing


def read_caption_file(path: str) -> str:
    """The text of a caption file without surrounding blanks. Raises ValueError with a reason."""
    size = storage.size(path)
    if size > MAX_CAPTION_BYTES:
        raise ValueError(f"caption too long: {size} bytes, allowed: {MAX_CAPTION_BYTES}")
    try:
        return storage.read_bytes(path).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"caption is not UTF-8 ({error.reason} at byte {error.start})") from None


def _check_names(row: SourceRow) -> None:
    """A name that cannot be written is a problem, and is shown in characters that can."""
    try:
        check_name("file name", row.where)
    except ValueError as error:
        row.where, row.sample_id, row.problem = line(printable(row.where)), "", str(error)
        row.image, row.concept, row.caption_file, row.references = None, None, None, []


def _files(folder: str) -> _Files:
    files = _Files()
    others = 0
    listed = _remote_files(folder) if storage.is_remote(folder) else _local_files(folder, files)
    for name, path in listed:
        parts = name.split("/")
        if ".." in parts:  # S3 knows no folders, so that a key may hold anything
            files.problems[name] = "path leaves its folder"
        elif any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            files.images[name] = path
        elif suffix.lower() == ".parquet":
            files.parquet[name] = path
        elif suffix.lower() == ".txt":
            files.texts[stem] = path
            if name in files.problems:
                files.problems[f"{stem}.txt"] = f"caption: {files.problems[name]}"
        else:
            others += 1
            if parts[-1] == MANIFEST and name not in files.problems:
                files.manifests.append(name)
    if others:
        kinds = "images, .txt captions nor .parquet"
        files.notes.append(f"{others} files are neither {kinds}: left aside")
    return files


def _remote_files(folder: str) -> Iterator[tuple[str, str]]:
    fs, inner = storage.filesystem(folder)
    inner = inner.rstrip("/")
    with storage.storage_errors(folder):
        paths = sorted(fs.find(inner))
    for path in paths:
        # Cut off, not made relative: that would resolve "..".
        yield path[len(inner) + 1 :], f"s3://{path}"


def _local_files(folder: str, files: _Files) -> Iterator[tuple[str, str]]:
    """Links to folders are not entered: they may lead in circles or anywhere."""
    root = os.path.realpath(folder)
    listed: list[tuple[str, str]] = []
    for parent, folders, names in os.walk(folder):
        inside = os.path.relpath(parent, folder)
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                link = printable(os.path.normpath(os.path.join(inside, name)))
                files.notes.append(f"{link}: a link to a folder is not followed")
        for name in names:
            path = os.path.join(parent, name)
            shown = os.path.normpath(os.path.join(inside, name))
            listed.append((shown, path))
            if problem := _local_problem(path, root):
                files.problems[shown] = problem
    files.notes.sort()
    yield from sorted(listed)


def _local_problem(path: str, root: str) -> str | None:
    if not os.path.islink(path):
        # A pipe would be waited for forever.
        return None if os.path.isfile(path) else "not a regular file"
    target = os.path.realpath(path)
    if os.path.commonpath([root, target]) != root:
        return "link leaves the source's folder; a .jsonl may name files anywhere"
    return None if os.path.isfile(target) else "link leads nowhere"
