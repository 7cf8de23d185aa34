"""`dopsd library`: many concepts, an adapter of each."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, TakeOver, quiet
from dopsd.config import load_config
from dopsd.plan.cards import DEFAULT as CARD
from dopsd.plan.cards import EFFICIENCY, card_named
from dopsd.terminal import say, say_lines

app = typer.Typer(no_args_is_help=True)
LibraryPath = Annotated[str, typer.Argument(metavar="LIB", help="The run.folder of a library.")]


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    card: Annotated[str, typer.Option(help="Which card; an unknown one lists all.")] = CARD,
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the card's peak that is reached.")
    ] = EFFICIENCY,
    every: Annotated[bool, typer.Option("--all", help="List every concept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print what a library holds and takes: concepts, skips with reasons, hours, storage, workers.

    No GPU is asked and no picture is read.
    """
    chosen, run = card_named(card), load_config(config, overrides)
    quiet()
    from dopsd.library.catalogue.plan import plan_library

    made = plan_library(run, chosen, efficiency)
    say_lines(json.dumps(made.record(), indent=1) if as_json else "\n".join(made.lines(every)))


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, take_over: TakeOver = False) -> None:
    """Train what is not trained yet: the same command starts a library and goes on with it."""
    run = load_config(config, overrides)
    quiet()
    from dopsd.driver.monitoring.progress import Progress, clock
    from dopsd.files.storage import join
    from dopsd.library.folder import PAGE
    from dopsd.library.run import train_library

    with Progress() as progress:
        summary = train_library(run, progress.show, take_over=take_over)
    counts = summary.counts
    say("")
    say(
        f"Done: {counts.done} of {counts.planned} concepts, {summary.trained} of them now in "
        f"{clock(summary.seconds)} (workers busy {summary.busy:.0%}); {counts.skipped} skipped, "
        f"{counts.parked} parked"
    )
    say(f"  library  {summary.folder}")
    say(f"  page     {join(summary.folder, PAGE)}")
    for problem in summary.problems:
        say(f"  warning: {problem}")
    if counts.parked:
        say(f"Next: dopsd library retry {shlex.quote(summary.folder)} --failed, then train again")


@app.command()
def status(library: LibraryPath) -> None:
    """Print how a library stands, from its folder alone: done, in flight, parked and why."""
    from dopsd.library.report.status import check_holds_library, library_status

    check_holds_library(library)
    for line in library_status(library).lines():
        say(line)


@app.command()
def verify(
    library: LibraryPath,
    concept: Annotated[str | None, typer.Argument(help="One of its concepts alone.")] = None,
) -> None:
    """Hold each file of what is done against its card and the ledger; exit 1 if not so."""
    from dopsd.library.report.status import check_holds_library
    from dopsd.library.verify import verify_library

    check_holds_library(library)
    report = verify_library(library, concept)
    for line in report.lines():
        say(line)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def page(library: LibraryPath, take_over: TakeOver = False) -> None:
    """Make the page to browse a library anew: cards with pictures, search, failures first."""
    from dopsd.library.report.page import write_library_page
    from dopsd.library.report.status import check_holds_library
    from dopsd.ownership.lease import claimed

    check_holds_library(library)
    with claimed(library, "LIB", take_over=take_over, tell=say):
        written = write_library_page(library)
    say(written)


@app.command()
def retry(
    library: LibraryPath,
    failed: Annotated[bool, typer.Option("--failed", help="All that is parked.")] = False,
    take_over: TakeOver = False,
) -> None:
    """Let the next `dopsd library train` try again what is parked."""
    from dopsd.errors import ConfigError
    from dopsd.library.report.status import check_holds_library, retry_parked
    from dopsd.ownership.lease import claimed

    if not failed:
        raise ConfigError("dopsd library retry: nothing to try again, allowed: --failed")
    check_holds_library(library)
    with claimed(library, "LIB", take_over=take_over, tell=say):
        names = retry_parked(library)
    say(f"{len(names)} concepts will be tried again by the next `dopsd library train`")
