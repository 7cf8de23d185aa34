"""What a run does about a run that its folder holds already: the table behind `run.resume`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from dopsd.checkpoint.compatibility import config_drift
from dopsd.checkpoint.folder import OtherVersion, complete_steps, folder_of, read_manifest
from dopsd.checkpoint.manager import newest_checkpoint
from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.config.outputs import Resume
from dopsd.data.manifest import has_manifest, load_manifest
from dopsd.data.run_data import check_source
from dopsd.driver.setup.checks import finished_already, refuse_existing
from dopsd.driver.summary import Summary
from dopsd.errors import CheckpointError, ConfigError
from dopsd.run_folder.checkpoint_files import steps
from dopsd.run_folder.files import RunFolder

Start = Literal["begin", "go on", "finished"]


def decide(
    config: RunConfig,
    resume: Resume,
    replace: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Start:
    """What is to be done. Whoever asks holds the run folder's claim.

    ``replace``: even an unfinished run may be lost, under `never`. ``tell`` hears what people
    should know of it. Raises ConfigError for a run in the way, for none where one is required, and
    for a finished one of another config; DataError for one of other data; CheckpointError for none
    where one is required, and under `auto` for what is whole but not of this config or dopsd.
    """
    run = RunFolder(config.run.folder)
    if replace and resume != "never":
        raise ConfigError(f"--overwrite with run.resume: {resume}, allowed: run.resume=never")
    if resume == "never":
        refuse_existing(config, replace)
        return "begin"
    if resume == "require":
        if line := finished_already(config):
            tell(line)
            return "finished"
        _refuse_without_checkpoint(run)
        return "go on"
    if not run.exists:
        return "begin"
    if run.is_finished and not _asks_for_more(config, run):
        tell(f"The run in {run.path} is finished: nothing is trained now")
        return "finished"
    if _has_good_checkpoint(config, run):
        return "go on"
    if run.is_finished:  # what it exported is all that is left of it
        raise CheckpointError(
            f"{run.checkpoints}: no good checkpoint of the finished run to train on from; allowed: "
            "another run.folder, or run.resume=never with run.overwrite=true"
        )
    tell(f"The run in {run.path} has saved no checkpoint yet: it begins anew, its shards stay")
    return "begin"


def _refuse_without_checkpoint(run: RunFolder) -> None:
    way = "run.resume=auto (--resume-if-there)"
    if not run.exists:
        raise ConfigError(
            f"run.resume: require, but {run.path} holds no run; allowed: the folder of one, or "
            f"{way} to begin one there"
        )
    if not complete_steps(run.checkpoints):
        raise CheckpointError(
            f"{run.checkpoints}: no checkpoint, nothing to resume; allowed: {way}, which begins "
            "anew and keeps the shards"
        )


def _asks_for_more(config: RunConfig, run: RunFolder) -> bool:
    """Whether ``config`` trains further than the finished ``run``. Raises ConfigError or DataError
    when it is the config of another run."""
    done = Summary.read(run.path).steps
    if drift := config_drift(config, shown_values(run.config()), done):
        key, now, then = drift
        raise ConfigError(
            f"{key}: {now}, the finished run in {run.path} has {then}; allowed: another "
            "run.folder, or what that run has"
        )
    if has_manifest(config.shards):
        check_source(config, load_manifest(config.shards))
    return config.learner.steps > done


def _has_good_checkpoint(config: RunConfig, run: RunFolder) -> bool:
    checkpoint, refused = newest_checkpoint(config, None)
    if checkpoint is not None:
        return True
    for step in reversed(steps(run.checkpoints)):
        try:
            manifest = read_manifest(folder_of(run.checkpoints, step))
        except OtherVersion:
            raise CheckpointError("; ".join(refused)) from None
        except CheckpointError:  # torn or damaged: nothing is lost with it
            continue
        if config_drift(config, manifest.config, manifest.step):
            raise CheckpointError("; ".join(refused))
    return False
