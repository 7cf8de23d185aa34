"""Do the files of a library hold what its cards say, and the ledger every step once?"""

from __future__ import annotations

from dataclasses import dataclass, field

from dopsd import shown
from dopsd.data.planning.order import check_concepts
from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import Story, fold, read_ledger
from dopsd.library.report.card import Card
from dopsd.ownership.ownership import digest_of


@dataclass
class LibraryReport:
    """Of the concepts that are done; ``problems``: one line for each that disagrees."""

    planned: int
    verified: int = 0
    steps: int = 0
    changed: list[str] = field(default_factory=list)
    """Whole, but of other data or another recipe than the catalogue's: the next training has them
    anew."""
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        line = (
            f"{self.verified} of {self.planned} concepts are done and whole, {self.steps} steps "
            "once in the ledger"
        )
        if self.changed:
            line += (
                f"; {len(self.changed)} were trained of other data or by another recipe: "
                f"{shown.value(self.changed[:3])}"
            )
        if self.problems:
            line += f"; {len(self.problems)} disagree"
        return [*self.problems, line]


def verify_library(path: str, concept: str | None = None) -> LibraryReport:
    """Read every file of every concept, or of one, and hold it against card, catalogue and ledger.

    Raises ConfigError for a folder that holds no library, DataError for a ``concept`` that it does
    not have.
    """
    folder = LibraryFolder(path)
    folder.config()
    prints = {row["concept"]: row["fingerprint"] for row in folder.catalogue()}
    if concept is not None:
        check_concepts("CONCEPT", [concept], prints)
        prints = {concept: prints[concept]}
    stories = fold(read_ledger(folder.file(LEDGER)))
    report = LibraryReport(sum(map(bool, prints.values())))
    for name, expected in prints.items():
        if not expected:  # skipped: what it had before is of another catalogue
            continue
        if (card := folder.card(name)) is None:
            story = stories.get(name)
            if story is not None and story.fingerprint == expected and story.done:
                report.problems.append(f"{shown.line(name)}: done by the ledger, but not by a card")
            continue
        if problem := _problem(folder, card, stories.get(name, Story())):
            report.problems.append(f"{shown.line(name)}: {problem}")
        elif card.fingerprint != expected:
            report.changed.append(name)
        else:
            report.verified += 1
            report.steps += card.steps
    return report


def _problem(folder: LibraryFolder, card: Card, story: Story) -> str:
    """What is wrong with a concept that is done; empty when nothing is."""
    for name, written in card.files.items():
        path = storage.join(folder.concept(card.concept), name)
        try:
            if digest_of(storage.read_parts(path)) != written:
                return f"{name} does not hold what its card says"
        except (OSError, StorageError) as error:
            return f"{name}: {error}"
    counted = [step for first, last in story.spans for step in range(first, last)]
    if story.fingerprint == card.fingerprint and counted != list(range(card.steps)):
        return f"the ledger has {len(counted)} steps, its card {card.steps}"
    return ""
