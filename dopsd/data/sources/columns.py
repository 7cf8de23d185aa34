"""Which column of a list or table is which field of a sample, where it goes by another name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dopsd.data.sources.fields import CAPTION_FIELDS, FIELDS, shown

IMAGE_NAMES = (
    "file_name",
    "filename",
    "image_path",
    "image_file",
    "img_path",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "path",
    "file",
    "local_path",
)
"""Other names of the column of pictures, the first that is there counts."""
LIST_NAME = "local_path_list"
"""Of the authors' own data: a list of paths whose last is the target, the others its references."""
CONCEPT_NAMES = ("class_name", "concept_name")
_CAPTION_NAMES = ("txt", "description", "caption_text", "image_caption", "tags")
_KINDS = "short|medium|long|detailed|user|brief|simple|dense"
_KEYED = re.compile(
    rf"(?:{_KINDS})(?:_(?:caption|prompt|text))?(?:_[a-z]{{2,3}})?"
    rf"|(?:caption|prompt|text)_(?:{_KINDS}|[a-z]{{2,3}}|\d{{1,2}})(?:_[a-z]{{2,3}})?"
)
"""Columns that each hold a caption of their own: ``short_en``, ``caption_long``, ``text_zh``."""
CAPTIONED_BY = "captioned_by"
"""What wrote a caption of `dopsd caption`."""
_KNOWN = frozenset({"h*w", "w*h", CAPTIONED_BY})
"""Sizes as texts beside the authors' paths, where a picture's own counts; and who wrote."""


@dataclass(frozen=True)
class Columns:
    """Field -> column, and columns that hold a caption under a key of their own."""

    fields: dict[str, str]
    captions: tuple[str, ...] = ()
    """Columns whose names are the keys of their captions."""
    notes: tuple[str, ...] = ()
    """What was guessed, and what was named and is not there, for the user."""
    ignored: frozenset[str] = field(default_factory=frozenset)
    """Columns that are known and of no use."""

    @property
    def used(self) -> set[str]:
        return {*self.fields.values(), *self.captions}


def columns_of(
    names: Collection[str], asked: Mapping[str, str], pictures: Iterable[str] = ()
) -> Columns:
    """The columns of a file that has ``names``; ``asked`` is data.columns and is never guessed at.

    ``pictures``: columns that hold pictures by their type, in order. What is missing is left out.
    """
    fields = {name: asked.get(name, name) for name in FIELDS if asked.get(name, name) in names}
    notes: list[str] = []

    def guess(name: str, candidates: Iterable[str]) -> None:
        if name in asked or name in fields:
            return
        taken = {*asked.values(), *fields.values()}
        found = next((one for one in candidates if one in names and one not in taken), None)
        if found is not None:
            fields[name] = found
            notes.append(f"{name} is read from {shown(found)} (data.columns={{{name}: ...}})")

    guess("image", (*pictures, LIST_NAME, *IMAGE_NAMES, *_suffixed(names, "_file_name")))
    guess("concept", CONCEPT_NAMES)
    captions: tuple[str, ...] = ()
    if not fields.keys() & {*CAPTION_FIELDS}:
        captions = tuple(name for name in names if _KEYED.fullmatch(name))
        if captions:
            keys = ", ".join(map(shown, captions))
            notes.append(f"captions are read from {keys}, each under its own key")
        else:
            guess("caption", (*_CAPTION_NAMES, *_suffixed(names, "_caption")))
    notes += [
        f"no column {shown(column)} for {name} (data.columns={{{name}: ...}})"
        for name, column in asked.items()
        if name not in fields
    ]
    return Columns(fields, captions, tuple(notes), _KNOWN & {*names})


def _suffixed(names: Collection[str], suffix: str) -> list[str]:
    """The only column that ends so; of several nobody could say which."""
    found = [name for name in names if name.endswith(suffix)]
    return found if len(found) == 1 else []


def named_values(record: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The fields of one record, as ``fields.fill`` takes them."""
    values = {name: record.get(column) for name, column in columns.fields.items()}
    if columns.captions:
        values["captions"] = {key: record.get(key) for key in columns.captions}
    if columns.fields.get("image") == LIST_NAME and isinstance(paths := values["image"], list):
        values["image"] = paths[-1] if paths else None
        values["references"] = values.get("references") or paths[:-1]
    for name, column in columns.fields.items():
        if column == "tags" and isinstance(tags := values[name], list):
            values[name] = ", ".join(map(str, tags))
    return values
