"""What the names of sub-folders say: the concept of their pictures, and kohya's repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dopsd.data.sources.fields import shown

SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev"}
"""Sub-folders that are parts of one data set, when all of the first level are."""
_REPEATS = re.compile(r"([1-9]\d{0,2})_(\S.*)", re.DOTALL)
"""kohya's names: repeats per epoch, and what the concept is called. A year is none, nor is a number
with zeros before it, which puts folders in order."""


@dataclass(frozen=True)
class FolderConcepts:
    """Read once from the names of all samples of a folder."""

    level: int
    """How many sub-folders a sample's concept lies below the source."""
    concepts: dict[str, str] = field(default_factory=dict)
    """Folder -> concept, where it is another name."""
    repeats: dict[str, int] = field(default_factory=dict)
    """Concept -> times per epoch that each of its samples comes."""
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> str | None:
        """The concept of the sample in a file of that name."""
        folders = name.split("/")[:-1]
        if len(folders) <= self.level:
            return None
        return self.concepts.get(folders[self.level], folders[self.level])


def folder_concepts(names: Iterable[str], folder_repeats: bool) -> FolderConcepts:
    """``names``: of the files of samples, inside the source's folder."""
    names = list(names)
    tops: dict[str, int] = {}
    for name in names:
        if "/" in name:
            tops[name.split("/")[0]] = tops.get(name.split("/")[0], 0) + 1
    level = 1 if tops and all(top.lower() in SPLITS for top in tops) else 0
    notes: list[str] = []
    if level:
        counts = ", ".join(f"{shown(top)} ({count})" for top, count in tops.items())
        notes.append(f"parts of the data set, all of them read: {counts}")
    folders = dict.fromkeys(
        parts[level] for parts in (name.split("/")[:-1] for name in names) if len(parts) > level
    )
    named = {folder: match for folder in folders if (match := _REPEATS.fullmatch(folder))}
    if not named or not folder_repeats:
        return FolderConcepts(level, notes=tuple(notes))
    counts_of: dict[str, set[int]] = {}
    for match in named.values():
        counts_of.setdefault(match[2].strip(), set()).add(int(match[1]))
    concepts: dict[str, str] = {}
    repeats: dict[str, int] = {}
    for folder, match in named.items():
        concept = match[2].strip()
        if len(counts_of[concept]) > 1 or (concept in folders and concept not in named):
            concept = folder  # a concept has one number of repeats
        concepts[folder], repeats[concept] = concept, int(match[1])
        notes.append(
            f"{shown(folder)}: concept {shown(concept)}, {match[1]} times per epoch "
            "(data.folder_repeats=false takes the name as it is)"
        )
    return FolderConcepts(level, concepts, repeats, tuple(notes))
