"""Train every trial that is not trained yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from pydantic import BaseModel

from dopsd.config import RunConfig
from dopsd.driver.context_cache import encode_contexts
from dopsd.driver.monitoring.progress import Progress, Report, clock
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import DataError
from dopsd.experiments.reproduce.trainings import Trainings
from dopsd.experiments.reproduce.variants import NEEDS_ALL, RATES, Budget, Trial, config_of, run_of
from dopsd.experiments.settings import refuse_other_settings
from dopsd.readers import read_json
from dopsd.run_folder.files import LORA_FILE, SUMMARY_FILE, RunFolder
from dopsd.run_folder.outputs import check_stranger


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
        refuse_other_settings(run, config)
    return left


def check_runs(trials: Sequence[Trial], folder: str) -> None:
    """Raises ConfigError or DataError, naming the file, for a run of ``trials`` that is there and
    cannot be read, and ConfigError for what is somebody else's in the place of one."""
    for trial in trials:
        run = RunFolder(run_of(trial, folder))
        check_stranger(run.path)
        if run.exists or run.is_finished:
            run.config()
        if run.is_finished:
            seconds_of(trial, folder)


def adapters_of(trials: Sequence[Trial]) -> list[Trial]:
    """The training adapters that ``trials`` need, each once: a seed's serves all its concepts."""
    needed = [trial.adapter for trial in trials if trial.variant.on_adapter]
    return list({adapter.name: adapter for adapter in needed}.values())


def train_all(
    trials: Sequence[Trial],
    budget: Budget,
    folder: str,
    begin: Callable[[str], Progress],
    at_once: int,
    take_over: bool = False,
) -> None:
    """Train the pending trials, ``at_once`` of them beside each other, after the training adapters
    that they need; a run that was cut short begins anew.

    Contexts are encoded once for the trials of a concept and seed, which share their images.
    ``begin(title)`` gives the progress of a part, a context manager.
    """
    left = pending(trials, budget, folder)
    stages = [pending(adapters_of(left), budget, folder), left]
    for concept, seed in dict.fromkeys((t.concept, t.seed) for t in chain(*stages)):
        with begin(f"contexts of {concept}, seed {seed}") as progress:
            every = config_of(Trial(NEEDS_ALL, concept, seed, RATES[0]), budget, folder)
            encode_contexts(every, progress.show, take_over)
    for stage, what in zip(stages, ("training adapters", "trials")):
        if stage:
            configs = {t.name: with_absolute_paths(config_of(t, budget, folder)) for t in stage}
            work = Trainings(configs, at_once, take_over)
            title = f"{len(stage)} {what}, {min(at_once, len(stage))} at a time"
            with begin(title) as progress:
                work.train(_shown(work, configs, progress))


def _shown(
    work: Trainings, configs: Mapping[str, RunConfig], progress: Progress
) -> Callable[[], None]:
    """Shows where ``work`` is, whenever it is called."""
    shown = 0
    steps = {name: config.learner.steps for name, config in configs.items()}

    def show() -> None:
        nonlocal shown
        for name, seconds in work.done[shown:]:
            progress.show("trials", Report([f"{name}: trained in {clock(seconds)}"]))
        shown = len(work.done)
        step = sum(steps[name] for name, _ in work.done)
        step += sum(training.step for training in work.running)
        parts = [
            f"{shown}/{len(configs)} done",
            *(f"{training.name} at {training.step or training.phase}" for training in work.running),
            f"ETA {progress.eta(step, sum(steps.values()))}",
        ]
        progress.show("trials", Report(work.lines, once=True))
        progress.show("trials", "; ".join(parts))

    return show


class _Summary(BaseModel):
    """What is read of a run's ``summary.json``."""

    seconds: float


def seconds_of(trial: Trial, folder: str) -> float:
    """What a finished trial took, from its start to its LoRA."""
    path = RunFolder(run_of(trial, folder)).file(SUMMARY_FILE)
    return read_json(path, _Summary, DataError, where=path).seconds
