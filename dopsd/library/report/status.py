"""How a library stands, read from its folder alone: while it trains, and after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dopsd import shown
from dopsd.errors import ConfigError, StorageError
from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import LibraryLedger, Story, fold, read_ledger
from dopsd.library.report.card import Card

DONE, IN_FLIGHT, WAITING, SKIPPED, PARKED = "done", "in flight", "waiting", "skipped", "parked"


@dataclass(frozen=True)
class LibraryStatus:
    """A row for each concept: see ``folder.write_index``."""

    rows: list[dict[str, Any]]

    def having(self, status: str) -> dict[str, str]:
        """Name -> reason of the concepts with that status."""
        return {row["concept"]: row["reason"] for row in self.rows if row["status"] == status}

    def lines(self) -> list[str]:
        """For people."""
        counts = Counter(row["status"] for row in self.rows)
        told = ", ".join(
            f"{counts[status]} {status}" for status in (DONE, IN_FLIGHT, WAITING, SKIPPED, PARKED)
        )
        lines = [f"{len(self.rows)} concepts: {told}"]
        for status in (IN_FLIGHT, PARKED, SKIPPED):
            lines += [
                f"  {status}: {shown.line(name)}: {shown.line(reason)}"
                for name, reason in self.having(status).items()
            ]
        return lines


def library_status(path: str) -> LibraryStatus:
    """From the catalogue, the cards and the ledger. Raises ConfigError for a folder that holds no
    library."""
    folder = LibraryFolder(path)
    folder.config()
    concepts = folder.catalogue()
    stories = fold(read_ledger(folder.file(LEDGER)))
    cards = folder.cards(row["concept"] for row in concepts if not row["skipped"])
    return LibraryStatus(
        [_row(row, cards.get(row["concept"]), stories.get(row["concept"])) for row in concepts]
    )


def _row(concept: dict[str, Any], card: Card | None, story: Story | None) -> dict[str, Any]:
    own = concept["fingerprint"]
    if card is not None and card.fingerprint != own:
        card = None
    if story is None or story.fingerprint != own:
        story = Story()
    status, reason = WAITING, story.tries.reason
    if concept["skipped"]:
        status, reason = SKIPPED, concept["skipped"]
    elif card is not None:
        status, reason = DONE, ""
    elif story.parked:
        status, reason = PARKED, story.parked
    elif story.worker:  # by the last word of the ledger: its command may have died
        status, reason = IN_FLIGHT, f"on {story.worker} from step {story.step}"
    row: dict[str, Any] = {name: concept[name] for name in ("concept", "folder", "pictures")}
    row |= {"captions": concept["captions"], "planned_steps": concept["steps"]}
    row |= {"status": status, "reason": reason, "fingerprint": own}
    row["attempts"] = story.tries.failures + (card is not None)
    if card is not None:
        names = ("steps", "stopped", "seconds", "first_loss", "last_loss", "adapter_sha256")
        row |= {name: getattr(card, name) for name in (*names, "no_sheet")}
        row["thumbnail"] = card.thumbnail or None
        if (scores := card.scores) is not None:
            row |= {"metric": scores.metric, "sharpness_ratio": scores.sharpness}
            row |= {"base_distance": scores.base, "student_distance": scores.student}
            row |= {"base_drawn": scores.base_drawn, "drawn": scores.drawn}
    return row


def retry_parked(path: str) -> list[str]:
    """Let the next start try again what is parked; returns its names. Who calls it has claimed the
    folder. Raises as :func:`library_status`."""
    parked = list(library_status(path).having(PARKED))
    ledger = LibraryLedger(LibraryFolder(path).file(LEDGER))
    for name in parked:
        ledger.retry(name)
    ledger.flush()
    return parked


def check_holds_library(path: str) -> None:
    """Raises ConfigError for a folder that holds none."""
    try:
        LibraryFolder(path).config()
    except (ConfigError, StorageError) as error:
        raise ConfigError(f"{error}; allowed: the run.folder of `dopsd library train`") from None
