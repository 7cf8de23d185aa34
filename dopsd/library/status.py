"""How a library stands, read from its folder alone: while it trains, and after."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd import shown
from dopsd.errors import ConfigError
from dopsd.library.folder import LEDGER, LibraryFolder
from dopsd.library.ledger import LibraryLedger, Story, fold, read_ledger


@dataclass(frozen=True)
class LibraryStatus:
    planned: list[str]
    skipped: dict[str, str]
    done: set[str]
    in_flight: dict[str, Story]
    """Where the ledger's last word of a concept is that it was begun: of a library whose command
    died, those that it will go on with."""
    parked: dict[str, str]

    def lines(self) -> list[str]:
        """For people."""
        waiting = len(self.planned) - sum(
            map(len, (self.skipped, self.done, self.in_flight, self.parked))
        )
        lines = [
            f"{len(self.planned)} concepts: {len(self.done)} done, {len(self.in_flight)} in "
            f"flight, {waiting} waiting, {len(self.skipped)} skipped, {len(self.parked)} parked"
        ]
        for name, story in self.in_flight.items():
            lines.append(
                f"  in flight: {shown.line(name)}: on {story.worker} from step {story.step}"
            )
        for what, reasons in (("parked", self.parked), ("skipped", self.skipped)):
            lines += [f"  {what}: {shown.line(n)}: {shown.line(why)}" for n, why in reasons.items()]
        return lines


def library_status(path: str) -> LibraryStatus:
    """Raises ConfigError for a folder that holds no library."""
    folder = LibraryFolder(path)
    folder.config()
    rows = folder.catalogue()
    prints = {row["concept"]: row["fingerprint"] for row in rows if not row["skipped"]}
    stories = {
        name: story
        for name, story in fold(read_ledger(folder.file(LEDGER))).items()
        if story.fingerprint == prints.get(name)
    }
    done = {n for n, card in folder.cards(prints).items() if card.fingerprint == prints[n]}
    return LibraryStatus(
        [row["concept"] for row in rows],
        {row["concept"]: row["skipped"] for row in rows if row["skipped"]},
        done,
        {n: s for n, s in stories.items() if s.worker and n not in done and not s.parked},
        {n: s.parked for n, s in stories.items() if s.parked and n not in done},
    )


def retry_parked(path: str) -> list[str]:
    """Let the next start try again what is parked; returns its names. Who calls it has claimed the
    folder. Raises as :func:`library_status`."""
    parked = list(library_status(path).parked)
    ledger = LibraryLedger(LibraryFolder(path).file(LEDGER))
    for name in parked:
        ledger.retry(name)
    ledger.flush()
    return parked


def check_holds_library(path: str) -> None:
    """Raises ConfigError for a folder that holds none."""
    try:
        LibraryFolder(path).config()
    except ConfigError as error:
        raise ConfigError(f"{error}; allowed: the run.folder of `dopsd library train`") from None
