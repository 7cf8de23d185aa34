"""`dopsd library train` on one page: the data becomes contexts, concepts go through workers, what
each of them gives is written, and the same command goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from dopsd import __version__, shown
from dopsd.config import RunConfig
from dopsd.data.concepts import ConceptGroup, concept_groups
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.run_data import prepared_shards
from dopsd.driver.context_cache import encode_setup, find_context_cache
from dopsd.driver.progress import Report, Show
from dopsd.driver.setup import CheckedRun, RunSetup, check_run, claimed_run
from dopsd.errors import DataError, DopsdError, InterruptedRun, WorkerError
from dopsd.export import lora_metadata
from dopsd.library.catalogue import (
    Catalogue,
    Concept,
    catalogue_of,
    known_catalogue,
    prepared_samples,
)
from dopsd.library.folder import LEDGER, LORA, TEACHER, Card, LibraryFolder
from dopsd.library.ledger import LibraryLedger, fold, read_ledger
from dopsd.library.pool import Ended, Event, Finished, Joined, Told, WorkerPool
from dopsd.library.recipe import Fingerprints, Recipes, check_library
from dopsd.library.scheduler import Assignment, Counts, Scheduler
from dopsd.library.speed import Pace
from dopsd.library.worker import Job, Trained
from dopsd.ownership import digest_of
from dopsd.ray_cluster.connect import end_local
from dopsd.ray_cluster.placement import Role
from dopsd.signals import interruptible

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


def train_library(config: RunConfig, show: Show, *, take_over: bool = False) -> LibrarySummary:
    """Train what of the library is not trained yet.

    Raises a DopsdError with one clear line when it cannot: before anything starts for a config or
    data that no library can have, and WorkerError when more than ``library.max_parked`` of the
    concepts failed. LeaseHeld when another process trains it, unless ``take_over``.
    """
    before = "the same command goes on"
    try:
        with interruptible(before):
            check_library(config)
            run = check_run(config, show)
            recipes = Recipes(run.config)
            known_catalogue(run.config, recipes)  # refuses, before Ray starts, what it can
            folder = LibraryFolder(run.config.run.folder)
            with claimed_run(run.config, show, take_over):
                folder.check()
                library = _open(run, folder, recipes, show, take_over)
                with interruptible(library.way_on):
                    return library.train()
    except InterruptedRun:
        end_local()
        raise


def _open(
    run: CheckedRun, folder: LibraryFolder, recipes: Recipes, show: Show, take_over: bool
) -> _Library:
    data = partial(prepared_shards, take_over=take_over)
    setup = RunSetup.open(run, show, data)
    config, manifest = setup.config, setup.manifest
    samples = prepared_samples(manifest, config.shards)
    catalogue = catalogue_of(config, samples, recipes)
    cache = _contexts(setup, show, take_over)
    prints = Fingerprints(recipes, manifest)
    own = {c.name: prints.of(c.name, c.steps) for c in catalogue.trained}
    folder.begin(config, catalogue.concepts.values(), own)
    return _Library(setup, folder, catalogue, recipes, own, cache)


def _contexts(setup: RunSetup, show: Show, take_over: bool) -> ContextCache:
    """Those that were encoded before, or are now: no encoder stays beside the workers."""
    config = setup.config.model_copy(deep=True)
    config.data.context_cache = "require"
    try:
        found = find_context_cache(config, setup.manifest, show)
    except DataError:
        encode_setup(setup, show, take_over)
        found = find_context_cache(config, setup.manifest, show)
    assert found is not None, "required"
    return found


class _Library:
    def __init__(
        self,
        setup: RunSetup,
        folder: LibraryFolder,
        catalogue: Catalogue,
        recipes: Recipes,
        prints: Mapping[str, str],
        cache: ContextCache,
    ) -> None:
        self.config, self.manifest, self._show = setup.config, setup.manifest, setup.show
        self._preset, self._role = setup.preset, setup.roles.learner
        self.folder, self.catalogue, self._recipes = folder, catalogue, recipes
        self._prints, self._cache = prints, cache
        self.scheduler = _scheduler(self.config, folder, catalogue, prints)
        self.ledger = LibraryLedger(folder.file(LEDGER))
        self.groups: dict[str, tuple[ConceptGroup, ...]] = concept_groups(self.manifest)
        self._began: dict[str, int] = {}
        """Step at which each concept in flight began."""
        self._loads = 0
        self._trained = 0
        self._pace = Pace(sum(c.steps for c in catalogue.trained if self._is_open(c.name)))

    def way_on(self) -> str:
        """What an interrupted command says."""
        counts = self.scheduler.counts
        return f"{counts.done} of {counts.planned} concepts are done, the same command goes on"

    def train(self) -> LibrarySummary:
        began, scheduler = time.monotonic(), self.scheduler
        counts = scheduler.counts
        self.ledger.start(counts.planned, counts.waiting)
        self._tell(*self._opening())
        if not scheduler.finished:
            self._run()
        self.ledger.flush()
        problems = list(self.ledger.notices)
        problems += [f"parked: {shown.line(n)}: {why}" for n, why in scheduler.parked.items()]
        return LibrarySummary(
            self.folder.path,
            scheduler.counts,
            self._trained,
            time.monotonic() - began,
            self._pace.busy,
            problems,
        )

    def _run(self) -> None:
        arguments = self.config, self._preset, self._cache, self._role.device
        role = replace(self._role, name="library", workers=self.config.library.workers)
        timeouts = self.config.timeouts
        with WorkerPool(
            arguments, role, start_s=timeouts.startup, step_s=timeouts.step
        ) as self._pool:
            self._fill(role)
            while not self.scheduler.finished:
                for event in self._pool.poll():
                    self._take(event)
                if why := self.scheduler.stopped:
                    self.ledger.flush()
                    raise WorkerError(f"{why}; `dopsd library status` lists them")
                for given in self.scheduler.assign():
                    self._begin(given)
                self._fill(role)
                self._show("library", self._line())

    def _fill(self, role: Role) -> None:
        """Ask for as many workers as there is work for."""
        counts = self.scheduler.counts
        self._pool.grow(min(role.workers, counts.waiting + counts.in_flight))

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
            config.data.concept_weights.get(name, 1.0),
            metadata,
            kept[1] if kept else {},
            list(kept[0].losses) if kept else [],
        )
        self._began[name] = kept[0].step if kept else 0
        self.ledger.begin(given, self._prints[name], self._began[name])
        if given.fresh:
            self._pool.renew(given.worker)
        self._pool.train(given.worker, job)
        self._pace.begin(given.worker, self._began[name])

    def _take(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._loads = 0
            self.scheduler.join(event.worker)
            self._pace.join(event.worker)
        elif isinstance(event, Told):
            self._told(event)
        elif isinstance(event, Finished):
            self._finish(event.worker, event.result)
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
        self.folder.keep(self._card(concept, given, result, files), files)
        self.ledger.done(concept.name, self._prints[concept.name], result.steps)
        self.folder.drop_state(concept.name)
        self.scheduler.finish(worker)
        self._pace.end(worker, concept.steps - self._began[concept.name])
        self._trained += 1
        self._tell(f"  done:   {_result_line(concept, result, worker)}")

    def _card(
        self, concept: Concept, given: Assignment, result: Trained, files: Mapping[str, bytes]
    ) -> Card:
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

    def _opening(self) -> list[str]:
        counts, gone = self.scheduler.counts, self._removed()
        lines = [
            f"library: {counts.planned} concepts: {counts.done} done, {counts.skipped} skipped, "
            f"{counts.parked} parked, {counts.waiting} to train"
        ]
        for kind, own in self.catalogue.skips_by_kind():
            example = f"{shown.value(own[0].name)}: {own[0].skip}"
            lines.append(f"  skipped: {len(own)} x {kind}, e.g. {example}")
        if self.catalogue.unnamed:
            lines.append(f"  left aside: {self.catalogue.unnamed} pictures without a concept")
        if gone:
            lines.append(
                f"  kept: {len(gone)} concepts that are not in the data any more, e.g. "
                f"{shown.value(gone[0])}"
            )
        return lines

    def _removed(self) -> list[str]:
        before = fold(read_ledger(self.folder.file(LEDGER)))
        return sorted(before.keys() - self.catalogue.concepts.keys())

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
    config: RunConfig, folder: LibraryFolder, catalogue: Catalogue, prints: Mapping[str, str]
) -> Scheduler:
    """What earlier starts left of the work."""
    stories = {
        name: story
        for name, story in fold(read_ledger(folder.file(LEDGER))).items()
        if prints.get(name) == story.fingerprint or not story.fingerprint
    }
    names = [concept.name for concept in catalogue.trained]
    done = {n for n, card in folder.cards(names).items() if card.fingerprint == prints[n]}
    return Scheduler(
        names,
        config.library.retries,
        config.library.max_parked,
        done=done,
        skipped=catalogue.skipped,
        parked={n: s.parked for n, s in stories.items() if s.parked and n not in done},
        tries={n: s.tries for n, s in stories.items()},
    )


def _result_line(concept: Concept, result: Trained, worker: str) -> str:
    first, last = result.losses
    loss = "" if first is None or last is None else f"loss {first:.4f} -> {last:.4f}, "
    why = f" ({result.stopped})" if result.stopped else ""
    return (
        f"{shown.line(concept.name)}: {loss}{result.steps} steps{why}, {result.seconds:.1f} s on "
        f"{worker}"
    )
