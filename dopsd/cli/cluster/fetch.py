"""`dopsd fetch`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, TakeOver, quiet
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.files import storage
from dopsd.terminal import say


def fetch(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    to: Annotated[
        str,
        typer.Option(
            help="Folder of the models: a run's HF_HOME, which may be shared. Or s3://, for "
            "model.base and model.vlm."
        ),
    ] = "models",
    take_over: TakeOver = False,
) -> None:
    """Download the models that a run of CONFIG reads, and no more, with their digests.

    With HF_HOME=DIR HF_HUB_OFFLINE=1 the run then needs no hub, nor with model.base=s3://... of
    what was put on S3. What is there is kept: the same command goes on after a cut.
    """
    run = load_config(config, overrides)
    quiet()
    from dopsd.driver.fetch.fetch import fetch as fetch_to_folder
    from dopsd.driver.fetch.to_s3 import fetch_to_s3
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.ownership.lease import claimed
    from dopsd.signals import interruptible

    download = fetch_to_s3 if storage.is_remote(to) else fetch_to_folder
    storage.check_writable("--to", to)
    with (
        interruptible(f"what is whole stays in {to}; the same command goes on"),
        claimed(to, "--to", take_over=take_over, tell=say),
        Progress() as progress,
    ):
        lines = download(run, to, lambda line: progress.show("fetch", line))
    for line in lines:
        say(line)
