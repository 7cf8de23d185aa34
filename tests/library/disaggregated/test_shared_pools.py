"""Many concepts through shared pools, real actors that compute nothing: whatever dies, every
concept gets what it would get alone, or is parked by name."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dopsd.driver.monitoring.progress import Event
from dopsd.errors import WorkerError
from dopsd.library.catalogue.catalogue import catalogue_of
from dopsd.library.catalogue.recipe import Fingerprints, Recipes
from dopsd.library.disaggregated.shared import Inference
from dopsd.library.folder import LEDGER, LORA, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from dopsd.library.report.status import PARKED, library_status
from dopsd.library.training import LibrarySummary, LibraryTraining
from dopsd.library.workers import pool
from dopsd.library.workers.pool import WorkerPool
from dopsd.ray_cluster.placement import Role, Roles
from tests.library.catalogue.test_catalogue import config, listed, with_fingerprints
from tests.library.disaggregated.fakes import FakeInference, FakePooledLearner, adapter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 8


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_NEWS_SECONDS", 0.02)


def start(
    folder: Path, names: list[str], show: Callable[[Event], None], *overrides: str
) -> LibrarySummary:
    run = config(
        "source=disaggregated",
        "library.workers=2",
        "library.in_flight=3",
        f"run.folder={folder}/library",
        f"library.steps={{min: {STEPS}, max: {STEPS}}}",
        *overrides,
    )
    sizes = dict.fromkeys(names, 4)
    recipes, manifest = Recipes(run), with_fingerprints(sizes)
    catalogue = catalogue_of(run, listed(sizes), recipes)
    of = Fingerprints(recipes, manifest)
    prints = {c.name: of.of(c.name, c.steps) for c in catalogue.trained}
    library = LibraryFolder(f"{folder}/library")
    library.begin(run, catalogue.concepts.values(), prints)
    (folder / "learners").mkdir(exist_ok=True)
    role = Role("library", 2, 0.1, 0.0)
    pools = Role("rollout", 2, 0.1, 0.0), Role("teacher", 2, 0.1, 0.0)
    inference = Inference(run, Roles(None, *pools, role), FakeInference)

    def workers() -> WorkerPool:
        arguments = f"{folder}/learners", inference.actor
        limits = {"start_s": 60.0, "step_s": 60.0}
        return WorkerPool(FakePooledLearner, arguments, role, **limits, places=3, most=3)

    training = LibraryTraining(
        recipes,
        manifest,
        catalogue,
        prints,
        library,
        workers,
        lambda phase, event: show(event),
        inference,
    )
    return training.train()


def kill_one(pids: Path) -> bool:
    """SIGKILL for a process that was not struck before; whether there was one."""
    for file in sorted(pids.iterdir()):
        file.unlink()
        try:
            os.kill(int(file.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
        return True
    return False


def test_whoever_dies_every_concept_is_as_if_trained_alone_and_the_bad_ones_are_parked(
    tmp_path: Path,
) -> None:
    good = [f"pets/{number:02}" for number in range(16)]
    bad = {
        "nan a": "step 5: loss or gradients are not finite, 6 steps in a row, attempt 2",
        "oom b": "its worker died: ",
        "broken c": "step 3 micro-batch N: teacher-",
        "killer d": "step 2 micro-batch N: 2 workers ended at it: rollout-",
    }
    left, lines = ["inference", "learners"], list[str]()

    def show(event: Event) -> None:
        if isinstance(event, str):
            lines.append(event)
        done = len(list((tmp_path / "library" / "concepts").rglob("card.json")))
        if left and done >= (3 if len(left) == 2 else 8) and kill_one(tmp_path / left[0]):
            left.pop(0)

    summary = start(tmp_path, [*good, *bad], show, "library.retries=1", "library.max_parked=1")
    assert not left, "the test killed nobody"
    parked = library_status(f"{tmp_path}/library").having(PARKED)
    assert parked.keys() == bad.keys()
    # Whichever of a step's two micro-batches was the first to fail.
    told = {name: re.sub("micro-batch [01]", "micro-batch N", why) for name, why in parked.items()}
    assert all(told[name].startswith(why) for name, why in bad.items()), told
    assert (summary.counts.done, summary.counts.parked) == (len(good), len(bad))
    assert summary.counts.conserved
    library = LibraryFolder(f"{tmp_path}/library")
    cards, stories = library.cards(good), fold(read_ledger(library.file(LEDGER)))
    for name in good:
        assert cards[name].adapter_sha256 == adapter(name, STEPS), name
        assert Path(library.concept(name), LORA).read_bytes() == adapter(name, STEPS).encode()
        spans = stories[name].spans
        assert [step for first, last in spans for step in range(first, last)] == list(range(STEPS))
    assert not list(Path(library.path, "state").rglob("*"))
    assert any("busy learner " in line and "rollout " in line for line in lines), lines[-3:]


def test_pools_that_cannot_load_the_base_end_the_command_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "inference").touch()  # where its workers would make a folder
    with pytest.raises(WorkerError, match=r"^3 (rollout|teacher) workers in a row ended before"):
        start(tmp_path, ["a", "b"], lambda event: None)
