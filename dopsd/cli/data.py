"""`dopsd data`: what a data set is, before any config."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated

import typer

from dopsd import storage
from dopsd.cli.options import Overrides
from dopsd.config import parse_config
from dopsd.errors import ConfigError, DataError
from dopsd.terminal import say

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """What a data set is, before any config."""


@app.command("look")
def look_at(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, list, table or .tar, local or s3://.")
    ],
    overrides: Overrides = None,
    page: Annotated[str, typer.Option(help="Where the page goes; empty: none is written.")] = (
        "data-look.html"
    ),
) -> None:
    """Say what training would make of SOURCE, as text and as a page with its pictures.

    KEY=VALUE are keys of the section data, e.g. data.pixel_area=262144.
    """
    for override in overrides or []:
        if not override.startswith("data."):
            key = override.split("=")[0]
            raise ConfigError(f"{key}: no key of the section data, allowed: data.KEY=VALUE")
    config = parse_config("", "", [f"data.source={json.dumps(source)}", *(overrides or [])])
    from dopsd.data.look import look
    from dopsd.data.prepare.settings import prepare_settings
    from dopsd.driver.progress import Progress
    from dopsd.report.look import check_page, write_look

    if page:
        check_page(page)
    path = source if storage.is_remote(source) else os.path.abspath(source)
    settings = prepare_settings(config.data, config.run.seed)
    with Progress() as progress:

        def tell(stage: str, done: int, total: int) -> None:
            progress.show("prepare", f"{stage}: {done} of {total}")

        found = look(path, settings, tell)
    for line in found.lines():
        say(line)
    if page:
        write_look(page, found)
        say(f"Page: {page}")
    if not found.rows:
        raise DataError(f"data.source: {source}: no sample can be used")
    say(f"Next: dopsd train CONFIG {shlex.join([f'data.source={source}', *(overrides or [])])}")
