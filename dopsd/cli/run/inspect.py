"""The commands around a run that exists: report, status, checkpoint, verify, stats, config."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from dopsd.checkpoint.folder import complete_steps, folder_of, read_manifest
from dopsd.cli.options import SECONDS_MOST, ConfigPath, Overrides
from dopsd.config import dump_config, load_config, reference
from dopsd.config.recipes import DEFAULT, recipes
from dopsd.errors import CheckpointError, ConfigError
from dopsd.files import storage
from dopsd.run_folder.files import REQUEST_FILE, RunFolder
from dopsd.terminal import say, say_lines

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, local or s3://.")]


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, local or s3://.")
    ],
    live: Annotated[
        bool, typer.Option("--serve", help="Serve it on this machine instead; it refreshes itself.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="With --serve. Default: a free one.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Of several runs: the page. Default: comparison.html.")
    ] = None,
) -> None:
    """Write the run page of a run, finished or not: one self-contained HTML file in its folder.
    Several runs are compared on a page of its own: pictures, curves, what their configs differ in.
    """
    if port is not None and not live:
        raise ConfigError("--port: given without --serve, allowed: with it")
    if len(runs) > 1:
        if live:
            raise ConfigError(f"--serve: {len(runs)} runs, allowed: one")
        from dopsd.report.comparison import write_comparison

        write_comparison(out or "comparison.html", runs)
        say(out or "comparison.html")
        return
    if out is not None:
        raise ConfigError("--out: given with one run, allowed: with several")
    (run,) = runs
    if live:
        from dopsd.report.live import serve

        serve(run, port or 0)
        return
    from dopsd.report.page import write_report

    say(write_report(run))


def checkpoint(
    run: RunPath,
    wait: Annotated[
        float, typer.Option(min=1, max=SECONDS_MOST, help="Seconds to wait for it.")
    ] = 600.0,
) -> None:
    """Ask the run that trains in RUN for a checkpoint, and wait until it is saved."""
    folder = RunFolder(run)
    if not folder.exists:
        raise ConfigError(f"{run}: holds no run; allowed: a run folder")
    if folder.is_finished:
        raise CheckpointError(f"{run}: this run is finished; its last checkpoint is saved")
    before = _newest(folder.checkpoints)
    asked = time.monotonic()
    folder.write(REQUEST_FILE, b"")
    while REQUEST_FILE in storage.names(run):  # which asks S3 anew each time
        if time.monotonic() - asked > wait:
            folder.remove(REQUEST_FILE)
            raise CheckpointError(f"{run}: no response within {wait:g} s; is this run training?")
        time.sleep(0.5)
    newest = _newest(folder.checkpoints)
    if newest is None or newest == before:
        raise CheckpointError(f"{run}: the checkpoint failed; the run's own output says why")
    say(newest[1])


def _newest(root: str) -> tuple[float, str] | None:
    """(when it was written, folder) of the checkpoint that was written last.

    Compared with itself only: the run's clock may differ from this machine's.
    """
    checkpoints = []
    for step in complete_steps(root):
        path = folder_of(root, step)
        with contextlib.suppress(CheckpointError, FileNotFoundError):  # it may be pruned meanwhile
            checkpoints.append((read_manifest(path).written, path))
    return max(checkpoints, default=None)


def verify(run: RunPath) -> None:
    """Recompute from plan and ledger which sample was trained at which step; exit 1 if not so."""
    from dopsd.driver.verify import verify_run

    report = verify_run(run)
    for line in report.lines():
        say(line)
    if not report.agrees:
        raise typer.Exit(1)


def show_config(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    keys: Annotated[
        bool, typer.Option("--reference", help="Every key with default and meaning.")
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="The names of the recipes.")] = False,
) -> None:
    """Print the resolved config, the reference of every key, or the names of the recipes."""
    if names:
        say_lines("\n".join(recipes()))
    elif keys:
        say_lines(reference())
    else:
        say_lines(dump_config(load_config(config, overrides)))


def status(
    run: RunPath,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; times in seconds.")
    ] = False,
) -> None:
    """Print how a run stands, from its folder alone: step, rate, restarts, newest checkpoint, who
    writes, the last notices."""
    from dopsd.driver.monitoring.status import run_state

    state = run_state(run)
    if as_json:
        say_lines(json.dumps(asdict(state), indent=1))
    else:
        for line in state.lines():
            say(line)


def stats(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs.")],
) -> None:
    """Print medians of finished runs side by side: seconds, idle fractions, memory by role."""
    from dopsd.report.stats import stats_table

    say_lines(stats_table(runs))
