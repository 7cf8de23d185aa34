"""`dopsd push`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import quiet
from dopsd.errors import ConfigError
from dopsd.terminal import say


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face hub.")
    ],
    dry_run: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write what would be uploaded into DIR.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody can read it; default: you alone.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option(help="With the contact sheet, which shows some training pictures.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
) -> None:
    """Upload a run's LoRA with a model card: pictures, recipe, licence, losses, how to use it."""
    quiet()
    from dopsd.driver.export.formats import DTYPES
    from dopsd.driver.export.push import push as upload
    from dopsd.driver.export.push import write_instead

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r}, allowed: {', '.join(DTYPES)}")
    if dry_run is None:
        say(upload(run, repository, dtype, public, pictures))
        return
    for path in write_instead(run, repository, dtype, pictures, dry_run):
        say(path)
