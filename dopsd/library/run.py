"""`dopsd library train` on one page: the data becomes contexts, concepts go through workers, what
each of them gives is written, and the same command goes on from there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dopsd.config import RunConfig
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.manifest import Manifest
from dopsd.data.pictures.absent import check_pictures
from dopsd.data.run_data import Tell, check_preserved, prepared_shards
from dopsd.driver.context_cache import encode_setup, encoders, find_context_cache
from dopsd.driver.monitoring.progress import Show
from dopsd.driver.setup.run_setup import CheckedRun, RunSetup, check_run, claimed_run, reserved
from dopsd.errors import DataError, InterruptedRun
from dopsd.library.catalogue.catalogue import catalogue_of, known_catalogue, prepared_samples
from dopsd.library.catalogue.recipe import Fingerprints, Recipes, check_library
from dopsd.library.disaggregated.in_flight import most_in_flight
from dopsd.library.disaggregated.learner import PooledLearner
from dopsd.library.disaggregated.shared import Inference
from dopsd.library.folder import LibraryFolder
from dopsd.library.training import LibrarySummary, LibraryTraining
from dopsd.library.workers.pool import WorkerPool
from dopsd.library.workers.worker import LibraryWorker
from dopsd.ray_cluster.connect import end_local
from dopsd.ray_cluster.placement import Role, Roles
from dopsd.ray_cluster.reservation import Reservation
from dopsd.signals import interruptible


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
            with (
                claimed_run(run.config, show, take_over),
                reserved(run.config, show) as place,
            ):
                folder.check()
                training = _open(run, folder, recipes, show, place, take_over)
                with interruptible(training.way_on):
                    return training.train()
    except InterruptedRun:
        end_local()
        raise


def _open(
    run: CheckedRun,
    folder: LibraryFolder,
    recipes: Recipes,
    show: Show,
    place: Reservation,
    take_over: bool,
) -> LibraryTraining:
    data = partial(library_data, take_over=take_over)
    setup = RunSetup.open(run, show, place, _workers, data, later=encoders)
    config, manifest = setup.config, setup.manifest
    samples = prepared_samples(manifest, config.shards)
    catalogue = catalogue_of(config, samples, recipes)
    role, *pools = _workers(config, setup.roles)
    setup.wait_for(role, *pools)
    cache = _contexts(setup, show, take_over)
    place.wait(lambda: [role, *pools], config.timeouts.startup)  # no encoder any more
    prints = Fingerprints(recipes, manifest)
    own = {c.name: prints.of(c.name, c.steps) for c in catalogue.trained}
    folder.begin(config, catalogue.concepts.values(), own)
    timeouts = config.timeouts
    arguments = config, setup.preset, cache, role.device
    inference = Inference(config, setup.roles) if pools else None
    pool = partial(WorkerPool, start_s=timeouts.startup, step_s=timeouts.step)

    def workers() -> WorkerPool:
        if inference is None:
            return pool(LibraryWorker, arguments, role)
        return pool(
            PooledLearner,
            (*arguments, inference.actor),
            role,
            places=inference.places(),
            most=most_in_flight(config),
        )

    return LibraryTraining(recipes, manifest, catalogue, own, folder, workers, show, inference)


def library_data(config: RunConfig, tell: Tell, take_over: bool = False) -> Manifest:
    """The manifest of the library's shards; raises as :func:`prepared_shards`, and DataError for
    samples that no encoder or class word has a use for."""
    manifest = prepared_shards(config, tell, take_over=take_over)
    check_pictures(config, manifest)  # of all concepts: whichever train, all are encoded
    check_preserved(config, manifest, alone=True)
    return manifest


def _workers(config: RunConfig, roles: Roles) -> list[Role]:
    """What trains, of which one is enough to begin with and more come when there is room, and the
    pools that all of them share, if any."""
    workers = config.library.workers
    learners = replace(roles.learner, name="library", workers=workers, min_workers=1)
    return [learners, *(pool for pool in (roles.rollout, roles.teacher) if pool is not None)]


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
