"""JSON lines out of bytes of which anything may have become: a line is an entry, or is damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dopsd.readers import json_value

Valid = Callable[[dict[str, Any]], bool]
"""Whether an entry is one of the file's kind: its fields, their types and ranges."""
LONGEST = 2**24
"""Bytes of a line (16 MiB): none of ours comes near."""
_SHOWN = 5


@dataclass(frozen=True)
class Lines:
    """What a file holds."""

    entries: Sequence[dict[str, Any]] = ()
    damage: Sequence[str] = ()
    """Each damaged line: its number, and what is wrong with it."""

    def told(self) -> str:
        """The damage in a few words."""
        more = len(self.damage) - _SHOWN
        return ", ".join(self.damage[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

    def joined(self, other: Lines, path: str) -> Lines:
        """With the lines of the next part, at ``path``, whose damage is told with its name."""
        name = path.rpartition("/")[2]
        damage = [f"{name} {line}" for line in other.damage]
        return Lines([*self.entries, *other.entries], [*self.damage, *damage])


def parse_lines(content: bytes, valid: Valid = lambda entry: True) -> Lines:
    """The entries of JSON lines. A last line that was cut off with its writer, and so has no end,
    is no damage: it is left out."""
    *lines, rest = content.split(b"\n")
    entries, damage = [], []
    for number, line in enumerate([*lines, rest], 1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(line, valid))
        except ValueError as error:
            if number <= len(lines):
                damage.append(f"line {number} ({error})")
    return Lines(entries, damage)


def _entry(line: bytes, valid: Valid) -> dict[str, Any]:
    """Raises ValueError, saying what is wrong."""
    if len(line) > LONGEST:
        raise ValueError(f"{len(line)} bytes")
    try:
        entry = json_value(line)
    except ValueError:
        raise ValueError("no JSON") from None
    if not isinstance(entry, dict):
        raise ValueError("no JSON object")
    try:
        known = valid(entry)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        known = False
    if not known:
        raise ValueError("fields of another kind")
    return entry


def is_count(value: Any, least: int = 0) -> bool:
    """A whole number from ``least`` on."""
    return type(value) is int and value >= least


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number within the bounds."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high
