"""The commands around a run that is there already: report, checkpoint, verify, stats, config."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from dopsd import storage
from dopsd.checkpoint.folder import complete_steps, read_manifest
from dopsd.cli.options import ConfigPath, Overrides
from dopsd.config import dump_config, load_config, reference
from dopsd.errors import CheckpointError, ConfigError
from dopsd.run_folder.files import CHECKPOINTS, CONFIG_FILE, SUMMARY_FILE


def report(
    run: Annotated[str, typer.Argument(help="Run folder (local or s3://), finished or not.")],
) -> None:
    """Write the run page, one self-contained HTML file, into the run folder."""
    from dopsd.report.page import write_report

    print(write_report(run))


RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, local or s3://.")]


def checkpoint(
    run: RunFolder,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for it.")] = 600.0,
) -> None:
    """Ask the run that trains in RUN for a checkpoint, and wait until it is there."""
    from dopsd.run_folder.files import REQUEST_FILE

    root = storage.join(run, CHECKPOINTS)
    if CONFIG_FILE not in storage.names(run):
        raise ConfigError(f"{run}: holds no run; allowed: a run folder")
    if SUMMARY_FILE in storage.names(run):
        raise CheckpointError(f"{run}: this run is finished; its last checkpoint is there")
    before = _newest(root)
    asked = time.monotonic()
    storage.write_bytes(storage.join(run, REQUEST_FILE), b"")
    while REQUEST_FILE in storage.names(run):
        if time.monotonic() - asked > wait:
            storage.remove(storage.join(run, REQUEST_FILE))
            raise CheckpointError(f"{run}: no response within {wait:g} s; is this run training?")
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
    for step in complete_steps(root):
        path = storage.join(root, f"step-{step:06d}")
        with contextlib.suppress(CheckpointError, FileNotFoundError):  # it may be pruned meanwhile
            found.append((read_manifest(path).written, path))
    return max(found, default=None)


def verify(run: RunFolder) -> None:
    """Recompute from plan and ledger which sample was trained at which step; exit 1 if not so."""
    from dopsd.driver.verify import verify_run

    verdict = verify_run(run)
    for line in verdict.lines():
        print(line)
    if not verdict.agrees:
        raise typer.Exit(1)


def show_config(
    config: ConfigPath = "configs/shapes.yaml",
    overrides: Overrides = None,
    keys: Annotated[
        bool, typer.Option("--reference", help="Every key with default and meaning.")
    ] = False,
) -> None:
    """Print the resolved config, or the reference of every key."""
    print(reference() if keys else dump_config(load_config(config, overrides)).rstrip())


def stats(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs.")],
) -> None:
    """Print medians of finished runs side by side: seconds, idle fractions, memory by role."""
    from dopsd.report.stats import stats_table

    print(stats_table(runs))
