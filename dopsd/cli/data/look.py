"""`dopsd data`: what a data set is, before any config."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from dopsd.cli.options import Overrides, refuse_overrides
from dopsd.config import DataSection, RunConfig, parse_config
from dopsd.config.load import as_override, as_text
from dopsd.errors import ConfigError, DataError
from dopsd.files import storage
from dopsd.shown import brief
from dopsd.terminal import say, say_lines

if TYPE_CHECKING:
    from dopsd.data.look import Look

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
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; no page is written.")
    ] = False,
) -> None:
    """Say what training would make of SOURCE, as text and as a page with its pictures.

    KEY=VALUE are keys of the section data, e.g. data.pixel_area=262144.
    """
    from dopsd.data.manifest import PrepareSettings

    config = data_config(source, overrides, PrepareSettings)
    from dopsd.report.look import check_page, write_look

    page = "" if as_json else page
    if page:
        check_page(page)
    found = looked_at(config, source, shown=not as_json)
    if as_json:
        say_lines(json.dumps(found.record(), indent=1))
        return
    if page:
        write_look(page, found)
        say(f"Page: {page}")
    if not found.rows:
        raise DataError(f"data.source: {source}: no sample can be used")
    words = [as_override("data.source", source), *(overrides or [])]
    say(f"Next: dopsd train CONFIG {shlex.join(words)}")


def data_config(source: str, overrides: list[str] | None, reads: type[BaseModel]) -> RunConfig:
    """A config in which only the section data says anything, of it what the command ``reads``.
    Raises ConfigError for any other key, which would be ignored."""
    refuse_overrides(overrides, {"data.source": "SOURCE"})
    given = [each.partition("=")[0] for each in overrides or []]
    for key in given:
        if not key.startswith("data."):
            raise ConfigError(f"{brief(key)}: no key of the section data, allowed: data.KEY=VALUE")
    config = parse_config("", "", [f"data.source={as_text(source)}", *(overrides or [])])
    known = sorted(reads.model_fields.keys() & DataSection.model_fields.keys())
    for key in given:
        if key.split(".")[1] not in known:
            raise ConfigError(
                f"{key}: not read by this command, allowed: data.KEY=VALUE with KEY one of "
                + ", ".join(known)
            )
    return config


def looked_at(config: RunConfig, source: str, shown: bool = True) -> Look:
    """What ``source`` holds by the section data of ``config``, told line by line where it is
    ``shown``. Raises DataError when it cannot be read at all."""
    from dopsd.data.look import look
    from dopsd.data.prepare.settings import prepare_settings
    from dopsd.driver.monitoring.progress import Progress

    path = source if storage.is_remote(source) else os.path.abspath(source)
    settings = prepare_settings(config.data, config.run.seed)
    if not shown:
        return look(path, settings, lambda stage, done, total: None)
    with Progress() as progress:

        def tell(stage: str, done: int, total: int) -> None:
            progress.show("prepare", f"{stage}: {done} of {total}")

        found = look(path, settings, tell)
    for line in found.lines():
        say(line)
    return found
