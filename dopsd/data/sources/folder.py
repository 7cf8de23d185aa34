"""A folder as a source: pictures with captions beside them or in a list, tables and tars."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from functools import partial
from itertools import pairwise

from dopsd.data.manifest import MANIFEST, find_manifest
from dopsd.data.schema import MASK
from dopsd.data.sources.concepts import FolderConcepts, folder_concepts
from dopsd.data.sources.fields import check_name, printable
from dopsd.data.sources.listing import METADATA, Files, list_folder
from dopsd.data.sources.lists import is_authors_list, list_rows
from dopsd.data.sources.parquet import list_parquet
from dopsd.data.sources.paths import inside
from dopsd.data.sources.rows import ByteRange, Source, SourceRow
from dopsd.data.sources.saved import list_arrow
from dopsd.data.sources.settings import ReadSettings
from dopsd.data.sources.tars import list_tars
from dopsd.files import storage
from dopsd.shown import line

_REFERENCE = re.compile(r"(.+)\.ref(\d+)", re.DOTALL)
"""Stem of a reference picture."""
_MASK = re.compile(rf"(.+)\.{MASK}", re.DOTALL)


def read_folder(folder: str, settings: ReadSettings) -> Source:
    """Pictures at any depth with captions beside them; ``sample_id`` is the path without suffix.

    A caption is in ``STEM.txt``, ``.caption`` or ``.json``, in the order of the settings, or in a
    list: Hugging Face's ``metadata.jsonl`` or ``.csv``, or the authors' own ``data.jsonl``.
    ``concept`` is the name of the first-level sub-folder; pictures at the top have none, and in a
    list it is a column. Pictures
    ``STEM.ref1.png``, ``STEM.ref2.jpg`` ... beside a picture are its references, in the order of
    their numbers, ``STEM.mask.png`` is its mask. The rows of every ``.parquet``, ``.arrow`` and
    ``.tar`` file come besides;
    pictures beside such tables are samples of their own only with a caption. Of prepared shards
    only those that their manifest names are read: other data lies beside them. Hidden files and
    folders are skipped.
    """
    files = list_folder(folder, settings)
    missing = _keep_named(folder, files)
    listed, named, places = _lists(files, settings)
    concepts = folder_concepts([*files.images], settings.folder_repeats)
    rows = _pictures(files, settings, concepts, named, places)
    rows += listed
    closed = files.problems.keys() & {*files.parquet, *files.arrow, *files.tars, *files.lists}
    rows += [SourceRow(name, "", problem=files.problems[name]) for name in sorted(closed)]
    rows += missing
    for row in rows:
        _check_names(row)
    source = Source(rows, [*files.notes, *concepts.notes, *_own_name(folder, rows)])
    source.repeats = dict(concepts.repeats)

    def opened(kind: dict[str, str]) -> list[tuple[str, str]]:
        return [(name, path) for name, path in kind.items() if name not in closed]

    for part in (
        list_parquet(opened(files.parquet), settings.columns, settings.texts),
        list_arrow(opened(files.arrow), files.states, settings.columns, settings.texts),
        list_tars(opened(files.tars), settings),
    ):
        source.rows += part.rows
        source.notes += part.notes
        source.groups += part.groups
    return source


def _lists(
    files: Files, settings: ReadSettings
) -> tuple[list[SourceRow], set[str], dict[str, str]]:
    """(rows of the lists that are read; the pictures that they name; folder -> its list)."""
    rows: list[SourceRow] = []
    named: set[str] = set()
    places: dict[str, str] = {}
    order = {name: at for at, name in enumerate(METADATA)}
    for name in sorted(files.lists, key=lambda one: (order.get(posixpath.basename(one), 9), one)):
        path = files.lists[name]
        place, base = posixpath.split(name)
        if name in files.problems:
            continue
        if base not in METADATA and not is_authors_list(path, settings):
            source = storage.join(files.root, name)
            files.notes.append(f"{name}: a list, not read (data.source={source} reads it)")
            continue
        if place in places:
            files.notes.append(f"{name}: left aside, {places[place]} lies beside it")
            continue
        places[place] = name
        found, notes = list_rows(
            path,
            name,
            settings,
            locate=partial(_open, files),
            rename=partial(inside, files.root, place, names=files.paths),
        )
        files.notes += notes
        rows += found
        named.update(name for row in found for name in _names(files, row))
    return rows, named, places


def _open(files: Files, name: str) -> str:
    if name in files.problems:
        raise ValueError(files.problems[name])
    return files.paths[name]


def _pictures(
    files: Files,
    settings: ReadSettings,
    concepts: FolderConcepts,
    named: set[str],
    places: dict[str, str],
) -> list[SourceRow]:
    """The pictures that no list names, and captions without a picture."""
    stems = {posixpath.splitext(name)[0] for name in files.images}
    listed = {posixpath.splitext(name)[0] for name in named}  # of those the list says it
    references: dict[str, list[tuple[int, str]]] = {}
    masks: dict[str, list[str]] = {}
    rows: list[SourceRow] = []
    used: set[str] = set()
    idle: list[str] = []
    left = several = listed_too = 0
    for name, path in files.images.items():
        stem = posixpath.splitext(name)[0]
        kinds = files.captions.get(stem) or files.captions.get(name) or {}
        used |= {*kinds.values()}
        if (match := _REFERENCE.fullmatch(stem)) and match[1] in stems:
            references.setdefault(match[1], []).append((int(match[2]), name))
            idle += kinds.values()
            continue
        of_mask = match[1] if (match := _MASK.fullmatch(stem)) and match[1] in stems else None
        if of_mask is not None and of_mask not in listed:
            masks.setdefault(of_mask, []).append(name)
            idle += kinds.values()
            continue
        found = [kinds[kind] for kind in settings.caption_files if kind in kinds]
        if name in named:
            listed_too += bool(found)
            continue
        if of_mask is not None:
            if settings.masks:
                rows.append(SourceRow(name, stem, problem=_listed_mask(name)))
            continue
        if not found and (files.parquet or files.arrow):
            left += 1
            continue
        several += len(found) > 1
        row = SourceRow(name, stem, ByteRange(path), concepts.of(name))
        row.caption_file = files.paths[found[0]] if found else None
        row.problem = files.problems.get(name)
        if row.problem is None and found and found[0] in files.problems:
            row.problem = f"caption: {files.problems[found[0]]}"
        if row.problem is None and not found:
            row.problem = _missing_caption(files, settings, stem, name, kinds, places)
        rows.append(row)
    for row in rows:
        numbered = sorted(references.get(row.sample_id, []))
        shown = [name for _, name in numbered]
        row.references = [ByteRange(files.images[name]) for name in shown]
        row.problem = row.problem or _twice("references of one number", numbered)
        if found := sorted(masks.get(row.sample_id, [])):
            row.mask = ByteRange(files.images[found[0]])
            if settings.masks:
                shown += found
                row.problem = row.problem or _twice("masks", [(0, name) for name in found])
        problem = next((files.problems[name] for name in shown if name in files.problems), None)
        row.problem = row.problem or problem
    for name in sorted(files.orphans(used)):
        rows.append(
            SourceRow(name, posixpath.splitext(name)[0], problem=_missing_image(files, name))
        )
    order = " before ".join(f".{kind}" for kind in settings.caption_files)
    if left:
        files.notes.append(f"{left} pictures without captions: left to the rows of tables")
    if several:
        files.notes.append(
            f"captions of several kinds beside {several} pictures: {order} (data.caption_files)"
        )
    if idle:
        names = ", ".join(map(printable, sorted(idle)[:3]))
        files.notes.append(f"captions beside {len(idle)} masks or references: left aside: {names}")
    if listed_too:
        lists = ", ".join(sorted(places.values())[:3])
        files.notes.append(f"captions beside {listed_too} pictures are left aside for {lists}")
    return rows


def _twice(what: str, numbered: list[tuple[int, str]]) -> str | None:
    """The reason of a quarantine for two files (number, name) of one number."""
    for (number, first), (other, second) in pairwise(numbered):
        if number == other:
            return f"several {what}: {first}, {second}; allowed: one"
    return None


def _listed_mask(name: str) -> str:
    return f"mask {name} beside a picture of a list, allowed: its name in the list's column mask"


def _missing_caption(
    files: Files,
    settings: ReadSettings,
    stem: str,
    name: str,
    kinds: dict[str, str],
    places: dict[str, str],
) -> str:
    """Why a picture has none, with the file that is there in its stead."""
    first, *rest = settings.caption_files
    wanted = " or ".join([f"{stem}.{first}", *(f".{kind}" for kind in rest)])
    reason = f"missing caption: no {wanted}"
    place = posixpath.dirname(name)
    while place and place not in places:
        place = posixpath.dirname(place)
    if place in places:
        return f"{reason}, and {places[place]} does not name the picture"
    if kinds:
        found = ", ".join(kinds.values())
        return f"{reason}; {found} is there (data.caption_files=[{', '.join(kinds)}] reads it)"
    if others := files.others.get(stem):
        return f"{reason}; {others[0]} is there, which is no caption"
    if unread := [one for one in files.lists if one not in places.values()]:
        path = storage.join(files.root, unread[0])
        return f"{reason}; {unread[0]} is there (data.source={path} reads it)"
    return reason


def _missing_image(files: Files, caption: str) -> str:
    stem = posixpath.splitext(caption)[0]
    reason = f"missing image: no picture beside {caption}"
    if others := files.others.get(stem) or files.others.get(posixpath.splitext(stem)[0]):
        return f"{reason}; {others[0]} is there, which is not read"
    return reason


def _names(files: Files, row: SourceRow) -> list[str]:
    """The names of the pictures of a row: those that it opens."""
    parts = [part for part in (row.image, row.mask, *row.references) if part]
    return [name for part in parts if (name := files.name_of(part.path)) is not None]


def _own_name(folder: str, rows: list[SourceRow]) -> list[str]:
    """kohya's repeats are read from the folders inside a source."""
    base = posixpath.basename(folder.rstrip("/"))
    own = folder_concepts([f"{base}/x"], folder_repeats=True)
    if not own.repeats or any(row.concept for row in rows):
        return []
    ((concept, count),) = own.repeats.items()
    above = posixpath.dirname(folder.rstrip("/")) or os.curdir
    return [
        f"for concept {concept!r} and {count} repeats give the folder above: data.source={above}"
    ]


def _keep_named(folder: str, files: Files) -> list[SourceRow]:
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


def _check_names(row: SourceRow) -> None:
    """A name that cannot be written is a problem, and is shown in characters that can."""
    try:
        check_name("file name", row.where)
    except ValueError as error:
        row.where, row.sample_id, row.problem = line(printable(row.where)), "", str(error)
        row.image, row.concept, row.caption_file, row.references = None, None, None, []
        row.mask = None
