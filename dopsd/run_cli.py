"""The commands around a run that is there already: resume, checkpoint, verify."""

from __future__ import annotations

import contextlib
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
    before = _newest(root)
    asked = time.monotonic()
    storage.write_bytes(storage.join(run, REQUEST_FILE), b"")
    while REQUEST_FILE in storage.names(run):
        if time.monotonic() - asked > wait:
            storage.remove(storage.join(run, REQUEST_FILE))
            raise CheckpointError(f"{run}: nobody answered for {wait:g} s; does this run train?")
        time.sleep(0.5)
    found = _newest(root)
    if found is None or found == before:
        raise CheckpointError(f"{run}: the checkpoint failed; the run's own output says why")
    print(found[1])


def _newest(root: str) -> tuple[float, str] | None:
    """(when it was written, folder) of the checkpoint that was written last.

    Compared with itself only: the run's clock may differ from this machine's.
    """
    found = []
    for step in checkpoints.complete_steps(root):
        path = storage.join(root, f"step-{step:06d}")
        with contextlib.suppress(CheckpointError, FileNotFoundError):  # it may be pruned meanwhile
            found.append((checkpoints.read_manifest(path).written, path))
    return max(found, default=None)


def verify(run: RunFolder) -> None:
    """Recompute from plan and ledger which sample was trained at which step; exit 1 if not so."""
    from dopsd.runtime.verify import verify_run

    verdict = verify_run(run)
    for line in verdict.lines():
        print(line)
    if not verdict.agrees:
        raise typer.Exit(1)
