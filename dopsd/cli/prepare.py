"""`dopsd prepare`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.console import Console

from dopsd.cli.options import ConfigPath, Overrides, quiet
from dopsd.config import load_config


def prepare(
    config: ConfigPath = "configs/shapes.yaml",
    overrides: Overrides = None,
    encode: Annotated[
        bool,
        typer.Option(
            "--encode", help="Encode all contexts once, so that training loads no encoder."
        ),
    ] = False,
) -> None:
    """Turn data.source into prepared shards (data.shards) and a manifest.

    With --encode, shards that are there already are kept.
    """
    run = load_config(config, overrides)
    quiet()
    from dopsd.data.run_data import prepare_shards
    from dopsd.driver.checks import refuse_missing_source, refuse_unwritable
    from dopsd.driver.context_cache import encode_contexts
    from dopsd.driver.progress import Progress
    from dopsd.ray_cluster.connect import connect

    console = Console()
    refuse_unwritable(run)
    refuse_missing_source(run)
    connect()
    with Progress(console) as progress:
        if encode:
            lines = encode_contexts(run, progress.show)
        else:
            manifest = prepare_shards(run, lambda status: progress.show("prepare", status))
            lines = manifest.summary_lines()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Shards: {run.shards}", highlight=False, markup=False)
    words = ["dopsd", "train", config, *(overrides or [])]
    if not any(word.startswith("run.folder=") for word in words):
        words.append("run.folder=runs/NAME")  # the config's own may hold a run already
    command = shlex.join(words)
    console.print(f"Next: {command}", highlight=False, markup=False, soft_wrap=True)
