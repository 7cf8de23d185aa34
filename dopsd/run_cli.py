"""The commands around a run that is there already: resume, checkpoint, verify."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dopsd import checkpoint as checkpoints
from dopsd import storage
from dopsd.config import RunConfig, load_config, parse_config
from dopsd.errors import CheckpointError, ConfigError

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, local or s3://.")]


def resumed_config(folder: str, config: str | None, overrides: list[str] | None) -> RunConfig:
    """The config of a run that goes on: its own, or the file ``config``, with overrides."""
    overrides = list(overrides or [])
    if config is not None and "=" in config:  # the first override took the place of the file
        overrides.insert(0, config)
        config = None
    if config is not None:
        run = load_config(config, overrides)
    else:
        place = storage.join(folder, "config.yaml")
        if not storage.exists(place):
            raise ConfigError(f"--resume: {folder} holds no run; allowed: a run folder")
        run = parse_config(storage.read_bytes(place).decode(), place, overrides)
    run.run.folder = folder
    return run


def checkpoint(
    run: RunFolder,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for it.")] = 600.0,
) -> None:
    """Ask the run that trains in RUN for a checkpoint, and wait until it is there."""
    from dopsd.runtime.saver import REQUEST_FILE

    root = storage.join(run, checkpoints.FOLDER)
    if "config.yaml" not in storage.names(run):
        raise ConfigError(f"{run}: holds no run; allowed: a run folder")
    if "summary.json" in storage.names(run):
        raise CheckpointError(f"{run}: this run is finished; its last checkpoint is there")
    asked = time.time()
    storage.write_bytes(storage.join(run, REQUEST_FILE), b"")
    while REQUEST_FILE in storage.names(run):
        if time.time() - asked > wait:
            storage.remove(storage.join(run, REQUEST_FILE))
            raise CheckpointError(f"{run}: nobody answered for {wait:g} s; does this run train?")
        time.sleep(0.5)
    steps = checkpoints.complete_steps(root)
    path = storage.join(root, f"step-{steps[-1]:06d}") if steps else root
    if not steps or checkpoints.read_manifest(path).written < asked:
        raise CheckpointError(f"{run}: the checkpoint failed; the run's own output says why")
    print(path)


def verify(run: RunFolder) -> None:
    """Recompute from plan and ledger which sample was trained at which step; exit 1 if not so."""
    from dopsd.runtime.verify import verify_run

    verdict = verify_run(run)
    for line in verdict.lines():
        print(line)
    if not verdict.agrees:
        raise typer.Exit(1)
