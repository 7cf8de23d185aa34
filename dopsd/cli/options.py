"""What several commands of the command line share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from dopsd.api.drawing import STEPS_MOST as STEPS_MOST
from dopsd.config.load import overridden
from dopsd.errors import ConfigError

Pixels = Annotated[int | None, typer.Option(min=1, max=8192, help="Pixels; default by base.")]
CONFIG = typer.Argument(
    help="A YAML file or a recipe's name (`dopsd config --list`).", metavar="CONFIG"
)
ConfigPath = Annotated[str, CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as learner.lr=2e-4.", metavar="[KEY=VALUE]..."),
]
SEED_MOST = 2**62
COUNT_MOST = 10**6
SHARE_MOST = 1e6
"""CPUs or GPUs of a worker; a bound refuses infinity and NaN too."""
SECONDS_MOST = 1e9
Partial = Annotated[bool, typer.Option("--partial", help="Load a LoRA that fits the base in part.")]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Write even where a living process does: that one stops, and notices."
    ),
]


def refuse_overrides(overrides: list[str] | None, decided: Mapping[str, str]) -> None:
    """Raises ConfigError for an override of a key that would be ignored: ``decided`` says by key
    what decides it instead."""
    given = overridden(overrides)
    for key, by in decided.items():
        if key in given:
            raise ConfigError(f"{key}: given beside {by}, which decides it; allowed: one of them")


def quiet() -> None:
    """Ask libraries not to narrate; call it before they are imported."""
    from dopsd.api.call import quiet

    quiet()
