"""Train every trial that is not trained yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dopsd.config import dump_config
from dopsd.driver.checks import with_absolute_paths
from dopsd.driver.context_cache import encode_contexts
from dopsd.driver.progress import Progress, Report, clock
from dopsd.errors import ConfigError
from dopsd.experiments.reproduce.trainings import Trainings
from dopsd.experiments.reproduce.variants import NEEDS_ALL, Budget, Trial, config_of
from dopsd.run_folder.files import CONFIG_FILE, LORA_FILE, RunFolder


def pending(trials: Sequence[Trial], budget: Budget, folder: str) -> list[Trial]:
    """The trials without a finished run.

    Raises ConfigError when a finished run was made by other settings: results never mix.
    """
    left = []
    for trial in trials:
        config = with_absolute_paths(config_of(trial, budget, folder))
        run = RunFolder(config.run.folder)
        if not (run.is_finished and run.has(LORA_FILE)):
            left.append(trial)
            continue
        if run.read(CONFIG_FILE).decode() != dump_config(config):
            raise ConfigError(
                f"{run.path} was trained by other settings; allowed: another --folder, "
                "or take it away"
            )
    return left


def train_all(
    trials: Sequence[Trial],
    budget: Budget,
    folder: str,
    begin: Callable[[str], Progress],
    at_once: int,
    take_over: bool = False,
) -> None:
    """Train the pending trials, ``at_once`` of them beside each other; a run that was cut short
    begins anew.

    Contexts are encoded once for the trials of a concept and seed, which share their images.
    ``begin(title)`` gives the progress of a part, a context manager.
    """
    left = pending(trials, budget, folder)
    for concept, seed in dict.fromkeys((trial.concept, trial.seed) for trial in left):
        with begin(f"contexts of {concept}, seed {seed}") as progress:
            every = config_of(Trial(NEEDS_ALL, concept, seed), budget, folder)
            encode_contexts(every, progress.show, take_over)
    if not left:
        return
    configs = {t.name: with_absolute_paths(config_of(t, budget, folder)) for t in left}
    work = Trainings(configs, at_once, take_over)
    with begin(f"{len(left)} trials, {min(at_once, len(left))} at a time") as progress:
        work.train(_shown(work, len(left), budget.steps, progress))


def _shown(work: Trainings, trials: int, steps: int, progress: Progress) -> Callable[[], None]:
    """Shows where ``work`` is, whenever it is called."""
    shown = 0

    def show() -> None:
        nonlocal shown
        for name, seconds in work.done[shown:]:
            progress.show("trials", Report([f"{name}: trained in {clock(seconds)}"]))
        shown = len(work.done)
        step = shown * steps + sum(training.step for training in work.running)
        parts = [
            f"{shown}/{trials} done",
            *(f"{training.name} at {training.step or training.phase}" for training in work.running),
            f"ETA {progress.eta(step, trials * steps)}",
        ]
        progress.show("trials", Report(work.lines, once=True))
        progress.show("trials", "; ".join(parts))

    return show


def lora_of(trial: Trial, budget: Budget, folder: str) -> str:
    """The file that a finished trial left."""
    return RunFolder(config_of(trial, budget, folder).run.folder).file(LORA_FILE)
