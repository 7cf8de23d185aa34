"""The files of a folder by kind, local or on S3, before any is opened."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dopsd.config.data import CAPTION_FILES
from dopsd.data.manifest import MANIFEST
from dopsd.data.sources import arrow, image_files, lists, saved, tars
from dopsd.data.sources.fields import printable
from dopsd.data.sources.settings import ReadSettings
from dopsd.files import storage

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
"""Names of Hugging Face's lists beside pictures; where several lie side by side the first counts.
"""
_COMPRESSED = (".gz", ".tgz", ".zip", ".7z", ".rar", ".zst", ".bz2", ".xz")
_DOCUMENTS = {"readme", "license", "licence", "notice", "credits", "prompts", "sample_prompts"}
"""Stems of texts that are no captions of pictures that are missing."""


@dataclass
class Files:
    """The files of a folder by kind: name inside the folder -> path to open."""

    root: str
    paths: dict[str, str] = field(default_factory=dict)
    """Every file that may be opened, in order of names."""
    images: dict[str, str] = field(default_factory=dict)
    parquet: dict[str, str] = field(default_factory=dict)
    arrow: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    tars: dict[str, str] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    """.jsonl, .csv and .tsv files."""
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name without suffix -> suffix without dot, of CAPTION_FILES -> name of the file."""
    others: dict[str, list[str]] = field(default_factory=dict)
    """Files of no known kind, by name without suffix."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why a file may not be opened."""
    manifests: list[str] = field(default_factory=list)
    """Names of what may be manifests of prepared shards."""
    notes: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def name_of(self, path: str) -> str | None:
        """The name of a file by the path that opens it."""
        if not self._names:
            self._names.update((path, name) for name, path in self.paths.items())
        return self._names.get(path)

    def orphans(self, used: set[str]) -> Iterator[str]:
        """Texts that are captions of no picture among ``used``, names of caption files."""
        for stem, kinds in self.captions.items():
            for kind, name in kinds.items():
                document = posixpath.basename(stem).lower() in _DOCUMENTS
                if name not in used and kind != "json" and not document:
                    yield name


def list_folder(folder: str, settings: ReadSettings) -> Files:
    """Every file below ``folder`` but hidden ones; raises StorageError."""
    files = Files(folder)
    if storage.is_remote(folder):
        listed = _remote(folder)
    else:
        listed = _local(folder, files, settings.follow_links)
    unread: Counter[str] = Counter()
    for name, path in listed:
        parts = name.split("/")
        if ".." in parts:  # S3 knows no folders, so that a key may hold anything
            files.problems[name] = "path leaves its folder"
        elif any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if not _sort(files, name, path):
            unread[posixpath.splitext(name)[1].lower() or "no suffix"] += 1
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common(5))
        files.notes.append(f"neither pictures, captions nor lists, left aside: {kinds}")
    packed = [name for names in files.others.values() for name in names]
    for name in [name for name in packed if name.lower().endswith(_COMPRESSED)][:5]:
        files.notes.append(f"{printable(name)}: compressed, unpack it (a .tar is read as it is)")
    return files


def _sort(files: Files, name: str, path: str) -> bool:
    """Put a file where it belongs; False for one of no known kind."""
    stem, suffix = posixpath.splitext(name)
    suffix, base = suffix.lower(), posixpath.basename(name)
    files.paths[name] = path
    if suffix in image_files.SUFFIXES:
        files.images[name] = path
    elif suffix == ".parquet":
        files.parquet[name] = path
    elif suffix == arrow.SUFFIX:
        files.arrow[name] = path
    elif suffix == tars.SUFFIX:
        files.tars[name] = path
    elif suffix in lists.SUFFIXES:
        files.lists[name] = path
    elif suffix[1:] in CAPTION_FILES:
        files.captions.setdefault(stem, {})[suffix[1:]] = name
        if base == saved.STATE:
            files.states[name] = path
        elif base == MANIFEST and name not in files.problems:
            files.manifests.append(name)
    else:
        files.others.setdefault(stem, []).append(name)
        return False
    return True


def _remote(folder: str) -> Iterator[tuple[str, str]]:
    fs, inner = storage.filesystem(folder)
    inner = inner.rstrip("/")
    with storage.storage_errors(folder):
        paths = sorted(fs.find(inner))
    for path in paths:
        # Cut off, not made relative: that would resolve "..".
        yield path[len(inner) + 1 :], f"s3://{path}"


def _local(folder: str, files: Files, follow: bool) -> Iterator[tuple[str, str]]:
    """Links to folders are entered when they are to be followed: they may lead anywhere, and of
    those that lead in circles each folder is entered once."""
    root = os.path.realpath(folder)
    listed: list[tuple[str, str]] = []
    entered = {root}
    for parent, folders, names in os.walk(folder, followlinks=follow):
        inside = os.path.relpath(parent, folder)
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                continue
            target = os.path.realpath(path)
            inside_already = f"{target}/".startswith(f"{root}/")
            circle = inside_already or target in entered or f"{root}/".startswith(f"{target}/")
            if follow and not circle:
                entered.add(target)
                continue
            link = printable(os.path.normpath(os.path.join(inside, name)))
            why = "it was entered already" if follow else "data.follow_links=true follows it"
            files.notes.append(f"{link}: a link to a folder is not followed ({why})")
            if follow:
                folders.remove(name)
        for name in names:
            path = os.path.join(parent, name)
            shown = os.path.normpath(os.path.join(inside, name))
            listed.append((shown, path))
            if problem := _local_problem(path, root, follow):
                files.problems[shown] = problem
    files.notes.sort()
    yield from sorted(listed)


def _local_problem(path: str, root: str, follow: bool) -> str | None:
    if not os.path.islink(path):
        # A pipe would be waited for forever.
        return None if os.path.isfile(path) else "not a regular file"
    target = os.path.realpath(path)
    if not follow and os.path.commonpath([root, target]) != root:
        return "link leaves the source's folder (data.follow_links=true follows it)"
    return None if os.path.isfile(target) else "link leads nowhere"
