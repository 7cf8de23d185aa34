"""Train every trial that is not trained yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dopsd import storage
from dopsd.config import dump_config
from dopsd.errors import ConfigError
from dopsd.reproduce.variants import Budget, Trial, config_of
from dopsd.runtime.data import with_absolute_paths
from dopsd.runtime.launch import train
from dopsd.runtime.progress import Progress
from dopsd.runtime.run_log import LORA_FILE, SUMMARY_FILE


def pending(trials: Sequence[Trial], budget: Budget, folder: str) -> list[Trial]:
    """The trials without a finished run.

    Raises ConfigError when a finished run was made by other settings: results never mix.
    """
    left = []
    for trial in trials:
        config = with_absolute_paths(config_of(trial, budget, folder))
        if not storage.exists(storage.join(config.run.folder, SUMMARY_FILE)):
            left.append(trial)
            continue
        made = storage.read_bytes(storage.join(config.run.folder, "config.yaml")).decode()
        if made != dump_config(config):
            raise ConfigError(
                f"{config.run.folder} was trained by other settings; allowed: another --folder, "
                "or take it away"
            )
    return left


def train_all(
    trials: Sequence[Trial], budget: Budget, folder: str, begin: Callable[[str], Progress]
) -> None:
    """Train the pending trials one after another; a run that was cut short begins anew.

    ``begin(title)`` gives the progress of a trial, a context manager.
    """
    left = pending(trials, budget, folder)
    for number, trial in enumerate(left, 1):
        with begin(f"trial {number} of {len(left)}: {trial.name}") as progress:
            train(config_of(trial, budget, folder), progress.show, replace=True)


def lora_of(trial: Trial, budget: Budget, folder: str) -> str:
    """The file that a finished trial left."""
    return storage.join(config_of(trial, budget, folder).run.folder, LORA_FILE)
