"""Concepts are named by users, folders by us: no name becomes a path."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from dopsd import shown
from dopsd.errors import DataError

_SLUG = 40
"""Characters of a name that a person may know it by."""


def digest(name: str) -> str:
    """16 hex digits that stand for a concept."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def slug(name: str) -> str:
    """Letters, digits and dashes of a name, or of none that has any; several names may share it."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG].strip("-") or "concept"


def folder_of(name: str) -> str:
    """The folder of a concept below that of all concepts: no other name has it, and a system that
    knows no case, or gives some names a meaning, takes it."""
    own = digest(name)
    return f"{own[:2]}/{slug(name)}-{own}"


def refuse_alike(names: Iterable[str]) -> None:
    """Raises DataError for two names that differ in case, blanks or Unicode form alone."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        first = seen.setdefault(_folded(name), name)
        if first != name:
            raise DataError(
                f"concepts {shown.value(first)} and {shown.value(name)} differ in case, blanks or "
                "Unicode form alone; allowed: one spelling of a concept"
            )


def _folded(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.split())
