"""A library's loop over real actors that compute nothing: whatever dies, every concept is done once
or parked by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from dopsd.driver.monitoring.progress import Event, Report
from dopsd.errors import ConfigError, WorkerError
from dopsd.library.catalogue.catalogue import catalogue_of
from dopsd.library.catalogue.recipe import Fingerprints
from dopsd.library.catalogue.recipe import Recipes as LibraryRecipes
from dopsd.library.folder import LEDGER, LORA, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from dopsd.library.report.status import PARKED, library_status, retry_parked
from dopsd.library.training import LibrarySummary, LibraryTraining
from dopsd.library.verify import verify_library
from dopsd.library.workers import pool
from dopsd.library.workers.pool import WorkerPool
from dopsd.ray_cluster.placement import Role
from tests.library.catalogue.test_catalogue import config, listed, with_fingerprints
from tests.library.fake_worker import SECONDS, FakeWorker, adapter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 10


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are asked often, since theirs are concepts of a tenth of a second."""
    monkeypatch.setattr(pool, "_NEWS_SECONDS", 0.02)


class Crash(Exception):
    """The command dies."""


def start(
    folder: Path,
    names: Sequence[str] | Mapping[str, int],
    show: Callable[[Event], None] = lambda event: None,
    step_s: float = 60.0,
    overrides: tuple[str, ...] = (),
    seconds: float = SECONDS,
    cpus: float = 0.1,
) -> LibrarySummary:
    """``names`` with their pictures, 4 where that is not said; ``seconds``: of a step."""
    run = config(
        f"run.folder={folder}/library",
        f"library.steps={{min: {STEPS}, max: {STEPS}}}",
        *overrides,
    )
    sizes = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, 4)
    recipes, manifest = LibraryRecipes(run), with_fingerprints(sizes)
    catalogue = catalogue_of(run, listed(sizes), recipes)
    of = Fingerprints(recipes, manifest)
    prints = {c.name: of.of(c.name, c.steps) for c in catalogue.trained}
    library = LibraryFolder(f"{folder}/library")
    library.begin(run, catalogue.concepts.values(), prints)
    (folder / "pids").mkdir(exist_ok=True)

    def workers() -> WorkerPool:
        role = Role("library", 3, cpus, 0.0)
        arguments = f"{folder}/pids", seconds
        return WorkerPool(FakeWorker, arguments, role, start_s=60.0, step_s=step_s)

    training = LibraryTraining(
        recipes, manifest, catalogue, prints, library, workers, lambda phase, event: show(event)
    )
    return training.train()


def done_lines(event: Event) -> int:
    """Concepts that this event says are done."""
    lines = event.lines if isinstance(event, Report) else ()
    return sum(line.startswith("  done:") for line in lines)


def kill_one(folder: Path, struck: set[str]) -> bool:
    """SIGKILL for a worker that trains, none of a concept in ``struck``, which would be parked as
    one that kills; whether there was one."""
    for file in (folder / "pids").iterdir():
        try:
            if (concept := file.read_text()) in {"", *struck}:
                continue
        except FileNotFoundError:
            continue
        try:
            os.kill(int(file.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            file.unlink(missing_ok=True)
        struck.add(concept)
        return True
    return False


def check_done(folder: Path, names: list[str]) -> None:
    """Each of ``names`` has the adapter that training it alone gives, and each step stands once
    behind it."""
    library = LibraryFolder(f"{folder}/library")
    cards, stories = library.cards(names), fold(read_ledger(library.file(LEDGER)))
    assert cards.keys() == set(names)
    for name in names:
        assert cards[name].adapter_sha256 == adapter(name, STEPS)
        assert Path(library.concept(name), LORA).read_bytes() == adapter(name, STEPS).encode()
        spans = stories[name].spans
        assert [step for first, last in spans for step in range(first, last)] == list(range(STEPS))
    assert not list(Path(library.path, "state").rglob("*"))
    report = verify_library(library.path)
    assert not report.problems and report.verified == len(names)


def test_kills_and_crashes_cost_nothing(tmp_path: Path) -> None:
    count, kills, crashes = 40, 3, 2  # test_chaos.py has more of them, of commands too
    names = [f"pets/{number:04}" for number in range(count)]
    left, done, struck = kills, 0, set()

    def trouble(event: Event) -> None:
        """A kill after every so many concepts."""
        nonlocal left, done
        done += done_lines(event)
        if left and done >= count // (2 * kills + 2) * (kills - left + 1):
            left -= kill_one(tmp_path, struck)

    for _ in range(crashes):
        until = done + count // (2 * crashes)

        def ends(event: Event, until: int = until) -> None:
            trouble(event)
            if done >= until:
                raise Crash

        with pytest.raises(Crash):
            start(tmp_path, names, ends)
        assert not library_status(f"{tmp_path}/library").having(PARKED)
    summary = start(tmp_path, names, trouble)
    assert summary.counts.done == count and summary.counts.conserved
    assert left == 0, "the test killed nobody"
    check_done(tmp_path, names)


def test_concepts_that_fail_are_parked_by_name_and_the_others_do_not_notice(tmp_path: Path) -> None:
    bad = {
        "nan a": "step 5: loss or gradients are not finite, 6 steps in a row, attempt 2",
        "killer b": "its worker died: ",
        "hang c": "no step within 6 s (timeouts.step), at step 3; its worker was ended, attempt 2",
        "corrupt d": "shard-00001.parquet: row group 3 is damaged, attempt 2",
        "oom e": "MemoryError: 80 GiB, attempt 2",
    }
    good = [*(f"pets/{number:02}" for number in range(19)), "warm f"]
    settings = ("library.retries=1", "library.max_parked=1")
    summary = start(tmp_path, [*good, *bad], step_s=6.0, overrides=settings)
    assert (summary.counts.done, summary.counts.parked) == (len(good), len(bad))
    parked = library_status(f"{tmp_path}/library").having(PARKED)
    assert parked.keys() == bad.keys()
    assert all(parked[name].startswith(why) for name, why in bad.items()), parked
    check_done(tmp_path, good)
    ledger = tmp_path / "library" / LEDGER
    lines = [line for line in ledger.read_text().splitlines() if '"done"' not in line]
    ledger.write_text("\n".join(lines) + "\n")  # of commands that died between card and line
    assert start(tmp_path, [*good, *bad]).trained == 0, "what is parked stays so"
    check_done(tmp_path, good)
    assert retry_parked(f"{tmp_path}/library") == sorted(bad)
    assert not library_status(f"{tmp_path}/library").having(PARKED)


def test_of_a_catalogue_that_changed_what_is_new_or_changed_trains(tmp_path: Path) -> None:
    before = {f"pets/{number}": 4 for number in range(6)}
    assert start(tmp_path, before).trained == 6
    added = {"pets/new": 4, "styles/new": 4, "a": 4}
    now = {**before, **added, "pets/3": 5}
    del now["pets/0"]
    lines: list[str] = []

    def show(event: Event) -> None:
        lines.extend(event.lines if isinstance(event, Report) else ())

    summary = start(tmp_path, now, show)
    trained = {line.split()[1].rstrip(":") for line in lines if line.startswith("  done:")}
    assert trained == {*added, "pets/3"} and summary.trained == 4
    assert summary.counts.done == len(now) and summary.counts.conserved
    assert any("kept: 1 concepts that are not in the data any more" in line for line in lines)
    check_done(tmp_path, list(now))
    assert LibraryFolder(f"{tmp_path}/library").card("pets/0") is not None


def test_a_bad_recipe_stops_early_with_the_commonest_reason(tmp_path: Path) -> None:
    names = [f"nan {number:02}" for number in range(30)]
    with pytest.raises(WorkerError, match=r"^[4-6] of 30 concepts are parked .* not finite.*nan 0"):
        start(tmp_path, names, overrides=("library.retries=0",))
    assert len(library_status(f"{tmp_path}/library").having(PARKED)) >= 4
    with pytest.raises(ConfigError, match="holds no library"):
        library_status(str(tmp_path))
