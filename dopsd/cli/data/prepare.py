"""`dopsd prepare`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, TakeOver, quiet
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.errors import ConfigError
from dopsd.terminal import say


def prepare(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    cache_contexts: Annotated[
        bool,
        typer.Option(
            "--cache-contexts", help="Encode all contexts once, so that training loads no encoder."
        ),
    ] = False,
    encode: Annotated[bool, typer.Option("--encode", hidden=True)] = False,
    take_over: TakeOver = False,
) -> None:
    """Turn data.source into prepared shards (data.shards) and a manifest.

    With --cache-contexts, shards that exist already are kept.
    """
    if encode:
        raise ConfigError("--encode: unknown, did you mean --cache-contexts?")
    run = load_config(config, overrides)
    quiet()
    from dopsd.driver.context_cache import encode_contexts
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.driver.setup.run_setup import prepare_data
    from dopsd.signals import interruptible

    stays = "what is encoded stays, and" if cache_contexts else "no data set was made;"
    with interruptible(f"{stays} the same command goes on"), Progress() as progress:
        if cache_contexts:
            lines = encode_contexts(run, progress.show, take_over)
        else:
            lines = prepare_data(run, progress.show, take_over).summary_lines()
    for line in lines:
        say(line)
    say(f"Shards: {run.shards}")
    words = ["dopsd", "train", config, *(overrides or [])]
    if not any(word.startswith("run.folder=") for word in words):
        words.append("run.folder=runs/NAME")  # the config's own may hold a run already
    command = shlex.join(words)
    say(f"Next: {command}")
