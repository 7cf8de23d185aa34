"""What the tests of layouts share: samples of a source as prepare sees them, without Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopsd.data.manifest import PrepareSettings
from dopsd.data.prepare.facts import Inspected
from dopsd.data.prepare.findings import findings
from dopsd.data.prepare.shards import Inspector
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import SourceRow
from tests.data.samples import SMALL, picture


@dataclass
class Seen:
    """The samples of a source, those that cannot be used, and what is told."""

    samples: dict[str, SourceRow] = field(default_factory=dict)
    inspected: dict[str, Inspected] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)

    @property
    def captions(self) -> dict[str, dict[str, str]]:
        return {name: row.captions for name, row in self.samples.items()}

    def told(self, words: str) -> bool:
        return any(words in note for note in self.notes)


def look(source: Path, **settings: Any) -> Seen:
    """Read and inspect every sample."""
    options = PrepareSettings(**{**SMALL, "max_enlarge": 64.0, **settings})
    inspector = Inspector.of(options)
    listed = read_source(str(source), options)
    aside = source.parent / "aside"
    aside.mkdir(exist_ok=True)
    found = [(row, inspector.inspect(row)) for row in listed.rows if row.problem is None]
    bad = [row for row in listed.rows if row.problem is not None]
    for number, group in enumerate(listed.groups):
        for row, inspected in inspector.unpack(group, str(aside / f"{number}")):
            if row.problem is None:
                found.append((row, inspected))
            else:
                bad.append(row)
    seen = Seen(notes=list(listed.notes), repeats=listed.repeats)
    usable = [(row, inspected) for row, inspected in found if not inspected.reason]
    for row, inspected in usable:
        seen.samples[row.sample_id] = row
        seen.inspected[row.sample_id] = inspected
    seen.problems = {row.where: row.problem or "" for row in bad}
    seen.problems |= {row.where: one.reason for row, one in found if one.reason}
    seen.notes += findings(usable, options)
    return seen


def pictures(folder: Path, count: int = 3, suffix: str = ".png") -> list[Path]:
    """``count`` pictures 0.png, 1.png, ... without captions."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths
