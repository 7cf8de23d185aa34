"""What several commands of the command line share."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

CONFIG = typer.Argument(
    help="A YAML file or a recipe's name (`dopsd config --list`).", metavar="CONFIG"
)
ConfigPath = Annotated[str, CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as learner.lr=2e-4.", metavar="[KEY=VALUE]..."),
]

TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Write even where a living process does: that one stops, and notices."
    ),
]


def say(line: str) -> None:
    """A line for the user on stdout, as it is: text of theirs is never markup."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def quiet() -> None:
    """Ask libraries not to narrate; call it before they are imported."""
    from dopsd.ray_cluster.connect import QUIET

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
