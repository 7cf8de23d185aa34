"""`dopsd doctor`: would a run start here, and what is to be done."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dopsd.cli.options import CONFIG, Overrides, quiet
from dopsd.config import load_config
from dopsd.terminal import say_lines


def doctor(
    config: Annotated[str | None, CONFIG] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at this machine, and at what CONFIG needs: a line each, ok or what to do.

    Exit code 1 where something would stop a run. S3 and the hub are asked only for what CONFIG
    names; no weights are downloaded.
    """
    quiet()
    run = load_config(config, overrides) if config is not None else None
    from dopsd.driver.doctor.examine import examine
    from dopsd.driver.doctor.finding import lines, record, stops

    findings = examine(run)
    say_lines(json.dumps(record(findings), indent=1) if as_json else "\n".join(lines(findings)))
    if stops(findings):
        raise typer.Exit(1)
