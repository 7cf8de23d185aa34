"""The loop of a library's command: who trains what, what is written, what is told."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from dopsd import __version__, shown
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.data.planning.concepts import ConceptGroup, concept_groups
from dopsd.data.run_data import concept_weights
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import ConfigError, DopsdError, StorageError, WorkerError
from dopsd.export import lora_metadata
from dopsd.library.catalogue.catalogue import Catalogue, Concept
from dopsd.library.catalogue.recipe import Recipes
from dopsd.library.disaggregated.shared import Inference
from dopsd.library.folder import LEDGER, LORA, SHEET, TEACHER, LibraryFolder
from dopsd.library.ledger import LibraryLedger, Story, fold, read_ledger
from dopsd.library.lines import opening_lines, result_line
from dopsd.library.report.card import Card
from dopsd.library.report.gauges import LibraryMetrics
from dopsd.library.report.page import write_page
from dopsd.library.report.status import library_status
from dopsd.library.scheduler import Assignment, Counts, Outcome, Scheduler, Tries
from dopsd.library.speed import Pace
from dopsd.library.workers.events import Ended, Event, Finished, Joined, Left, Told
from dopsd.library.workers.jobs import Job, Trained
from dopsd.library.workers.pool import WorkerPool
from dopsd.ownership.ownership import digest_of

_LOADS = 3
"""Workers in a row that may die before they have loaded the base."""


@dataclass(frozen=True)
class LibrarySummary:
    """How a library stands when its command ends."""

    folder: str
    counts: Counts
    trained: int
    """Concepts that this start trained."""
    seconds: float
    busy: float
    """Share of the workers' time in which they trained."""
    problems: list[str]


class LibraryTraining:
    """Moves concepts from the queue through workers into the folder.

    ``manifest`` says where their rows are, ``prints`` which fingerprints those have that train.
    ``workers`` are opened for as long as :meth:`train` lasts, and get their roll-outs and scores
    from the ``inference`` that they share, if there is any.
    """

    def __init__(
        self,
        recipes: Recipes,
        manifest: Manifest,
        catalogue: Catalogue,
        prints: Mapping[str, str],
        folder: LibraryFolder,
        workers: Callable[[], WorkerPool],
        show: Show,
        inference: Inference | None = None,
    ) -> None:
        self._inference = inference
        self.config, self.manifest, self._show = recipes.config, manifest, show
        self.folder, self.catalogue, self._recipes = folder, catalogue, recipes
        self._prints, self._workers = prints, workers
        self._stories = fold(read_ledger(folder.file(LEDGER)))
        """What earlier starts tell."""
        cards = folder.cards(concept.name for concept in catalogue.trained)
        self._done = {n: c.steps for n, c in cards.items() if c.fingerprint == prints[n]}
        """Steps of what earlier starts have done."""
        self.scheduler = _scheduler(self.config, catalogue, prints, self._stories, set(self._done))
        self.ledger = LibraryLedger(folder.file(LEDGER))
        self.groups: dict[str, tuple[ConceptGroup, ...]] = concept_groups(self.manifest)
        self._began: dict[str, int] = {}
        """Step at which each concept in flight began."""
        self._loads = 0
        self._trained = 0
        self._notices: list[str] = []
        self._undrawn: dict[str, str] = {}
        """Concepts of this start without a sheet, and why."""
        self._pace = Pace(sum(c.steps for c in catalogue.trained if self._is_open(c.name)))

    def way_on(self) -> str:
        """What an interrupted command says."""
        counts = self.scheduler.counts
        return f"{counts.done} of {counts.planned} concepts are done, the same command goes on"

    def train(self) -> LibrarySummary:
        began, scheduler = time.monotonic(), self.scheduler
        counts = scheduler.counts
        self.ledger.start(counts.planned, counts.waiting)
        self._complete_ledger()
        self._tell(*opening_lines(self.catalogue, counts, self._removed()))
        self.folder.drop_other_states(filter(self._is_open, self._prints))
        try:
            if not scheduler.finished:
                self._run()
        finally:
            self.ledger.flush()
            rows = library_status(self.folder.path).rows
            self.folder.write_index(rows)
            unwritten = self._write_page(rows)
        problems = [*self.ledger.notices, *self._notices, *unwritten]
        problems += [f"parked: {shown.line(n)}: {why}" for n, why in scheduler.parked.items()]
        if self._undrawn:
            name, why = next(iter(self._undrawn.items()))
            problems.append(
                f"{len(self._undrawn)} adapters have no sheet, e.g. {shown.value(name)}: {why}"
            )
        return LibrarySummary(
            self.folder.path,
            scheduler.counts,
            self._trained,
            time.monotonic() - began,
            self._pace.busy,
            problems,
        )

    def _complete_ledger(self) -> None:
        """A card is written before its line: a command may have died between the two."""
        for name, steps in self._done.items():
            if not self._story(name).done:
                self.ledger.done(name, self._prints[name], steps)

    def _story(self, name: str) -> Story:
        """What earlier starts tell of a concept as it is now."""
        story = self._stories.get(name, Story())
        return story if story.fingerprint == self._prints[name] else Story()

    def _write_page(self, rows: list[dict[str, Any]]) -> list[str]:
        """Returns why it could not be written, if so: no adapter is lost by that."""
        try:
            write_page(self.folder, rows)
        except (ConfigError, StorageError) as error:
            return [f"the page was not made: {error}"]
        return []

    def _run(self) -> None:
        metrics, pace = LibraryMetrics(), self._pace
        try:
            with self._inference or nullcontext(), self._workers() as self._pool:
                self._fill()
                while not self.scheduler.finished:
                    self._turn()
                    metrics.tell(self.scheduler.counts, pace.per_minute, pace.busy)
        finally:
            self._notices += metrics.close(self.scheduler.counts, pace.per_minute, pace.busy)

    def _turn(self) -> None:
        """What workers did since the last turn, and what they are given now."""
        if self._inference is not None:
            self._share(self._inference)
        for event in self._pool.poll():
            self._take(event)
        if why := self.scheduler.stopped:
            raise WorkerError(f"{why}; `dopsd library status` lists them")
        for given in self.scheduler.assign():
            self._begin(given)
        self._fill()
        self._show("library", self._line())

    def _share(self, inference: Inference) -> None:
        """Take in how the pools are: as many concepts in flight as keep the learners busy."""
        self._pool.places = inference.places()
        self._pace.shares = inference.busy(self._pace.there)

    def _fill(self) -> None:
        """Ask for as many workers as there is work for."""
        counts = self.scheduler.counts
        self._pool.grow(counts.waiting + counts.in_flight)

    def _begin(self, given: Assignment) -> None:
        name = given.concept
        concept = self.catalogue.concepts[name]
        kept = self.folder.load_state(name, self._prints[name])
        config = self._recipes.config_of(name, concept.steps)
        metadata = lora_metadata(config, self.manifest)
        metadata |= {"dopsd.concept": name, "dopsd.data": self._prints[name]}
        job = Job(
            name,
            config,
            self.groups[name],
            concept_weights(config, self.manifest).get(name, 1.0),
            metadata,
            kept[0].step if kept else 0,
            kept[1] if kept else {},
            list(kept[0].losses) if kept else [],
            # Drawing may be what its worker died of.
            draw=not self.scheduler.tries.get(name, Tries()).deaths,
        )
        self._began[name] = job.first
        self.ledger.begin(given, self._prints[name], job.first)
        if given.fresh:
            self._pool.renew(given.worker)
        self._pool.train(given.worker, job)
        self._pace.begin(given.worker, job.first)

    def _take(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._loads = 0
            self.scheduler.join(event.worker)
            self._pace.join(event.worker)
        elif isinstance(event, Told):
            self._told(event)
        elif isinstance(event, Finished):
            self._finish(event.worker, event.result)
        elif isinstance(event, Left):
            self.scheduler.leave(event.worker)
            self._pace.leave(event.worker)
        else:
            self._ended(event)

    def _told(self, event: Told) -> None:
        self._pace.step(event.worker, event.news.step)
        if (state := event.news.state) is not None:
            name = self.scheduler.in_flight[event.worker].concept
            own = self._prints[name]
            self.folder.save_state(name, own, state.step, state.losses, state.files)
            self.ledger.saved(name, own, state.step)

    def _finish(self, worker: str, result: Trained) -> None:
        given = self.scheduler.in_flight[worker]
        concept = self.catalogue.concepts[given.concept]
        files = {LORA: result.lora}
        if result.teacher is not None:
            files[TEACHER] = result.teacher
        if result.sheet is not None:
            files[SHEET] = result.sheet.webp
        self.folder.keep(self._card(concept, given, result, files), files)
        self.ledger.done(concept.name, self._prints[concept.name], result.steps)
        self.folder.drop_state(concept.name)
        self.scheduler.finish(worker)
        self._pace.end(worker, concept.steps - self._began[concept.name])
        self._trained += 1
        if result.no_sheet:
            self._undrawn[concept.name] = result.no_sheet
        self._tell(f"  done:   {result_line(concept, result, worker)}")

    def _card(
        self, concept: Concept, given: Assignment, result: Trained, files: Mapping[str, bytes]
    ) -> Card:
        sheet = result.sheet
        return Card(
            concept=concept.name,
            fingerprint=self._prints[concept.name],
            pictures=concept.pictures,
            captions=concept.captions,
            planned_steps=concept.steps,
            steps=result.steps,
            stopped=result.stopped,
            attempt=given.attempt,
            seconds=round(result.seconds, 3),
            first_loss=result.losses[0],
            last_loss=result.losses[1],
            adapter_sha256=result.adapter_sha256,
            scores=sheet.scores if sheet else None,
            thumbnail=base64.urlsafe_b64encode(sheet.thumbnail) if sheet else b"",
            no_sheet=result.no_sheet,
            files={name: digest_of([payload]) for name, payload in files.items()},
            dopsd=__version__,
        )

    def _ended(self, event: Ended) -> None:
        self._pace.leave(event.worker)
        given = self.scheduler.in_flight.get(event.worker)
        if given is None:
            self._failed_to_load(event)
            return
        name = given.concept
        if self._inference is not None:
            self._inference.drop(name)
        parked = self.scheduler.end(event.worker, event.outcome, event.reason)
        self.ledger.end(name, self._prints[name], event.outcome, event.reason)
        if parked is not None:
            self.ledger.park(name, self._prints[name], parked)
            self.folder.drop_state(name)
            self._tell(f"  parked: {shown.line(name)}: {parked}")
        else:
            told = shown.line(event.reason)
            self._tell(f"  again:  {shown.line(name)}: {event.outcome.value}: {told}")

    def _failed_to_load(self, event: Ended) -> None:
        """A worker that never was: no concept's fault."""
        self.scheduler.leave(event.worker)
        if event.outcome is Outcome.LOST:  # it comes again, elsewhere
            return
        if self.scheduler.counts.in_flight:  # the recipe is good: it is that worker's node
            self._tell(f"  a worker could not load the base: {shown.line(event.reason)}")
            return
        if isinstance(event.error, DopsdError):
            raise event.error
        self._loads += 1
        if self._loads >= _LOADS:
            raise WorkerError(
                f"{self._loads} workers in a row ended before they had loaded the base: "
                f"{event.reason}"
            )

    def _is_open(self, name: str) -> bool:
        return name not in self.scheduler.done and name not in self.scheduler.parked

    def _removed(self) -> list[str]:
        return sorted(self._stories.keys() - self.catalogue.concepts.keys())

    def _line(self) -> str:
        counts = self.scheduler.counts
        return (
            f"{counts.done}/{counts.planned} done, {counts.skipped} skipped, {counts.parked} "
            f"parked; {counts.in_flight} in flight on {self._pool.size} workers, "
            f"{self._pace.told()}"
        )

    def _tell(self, *lines: str) -> None:
        self._show("library", Report(lines))


def _scheduler(
    config: RunConfig,
    catalogue: Catalogue,
    prints: Mapping[str, str],
    stories: Mapping[str, Story],
    done: set[str],
) -> Scheduler:
    """What earlier starts left of the work."""
    own = {
        name: story
        for name, story in stories.items()
        if prints.get(name) == story.fingerprint or not story.fingerprint
    }
    return Scheduler(
        [concept.name for concept in catalogue.trained],
        config.library.retries,
        config.library.max_parked,
        done=done,
        skipped=catalogue.skipped,
        parked={n: s.parked for n, s in own.items() if s.parked and n not in done},
        tries={n: s.tries for n, s in own.items()},
    )
