"""What every call has in common: its config, what it shows, and how a signal ends it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from dopsd.config import RunConfig, dump_config, load_config, parse_config
from dopsd.errors import ConfigError
from dopsd.signals import interruptible

if TYPE_CHECKING:
    from dopsd.driver.monitoring.progress import Show

Config = RunConfig | Mapping[str, Any] | str | PathLike[str]
"""A recipe's name, a YAML file, sections of keys, or a whole config."""


def as_config(config: Config, overrides: Sequence[str] = ()) -> RunConfig:
    """A config of its own, with ``overrides`` such as "learner.lr=2e-4" on top. Raises ConfigError
    in one line."""
    if isinstance(config, RunConfig):
        return parse_config(dump_config(config), "", list(overrides))
    if isinstance(config, Mapping):
        try:
            text = json.dumps(dict(config), default=os.fspath)  # which is YAML
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config: {error}; allowed: plain values and paths") from None
        return parse_config(text, "of sections", list(overrides))
    return load_config(os.fspath(config), list(overrides))


def quiet() -> None:
    """Ask libraries not to narrate; call it before they are imported."""
    from dopsd.ray_cluster.connect import ENVIRONMENT

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@contextlib.contextmanager
def call(progress: bool, way_on: str = "the same call begins again") -> Iterator[Show]:
    """A ``show`` for what is called in the block. A signal meanwhile raises InterruptedRun, which
    says ``way_on``; afterwards signals do what they did before."""
    quiet()
    from dopsd.driver.monitoring.progress import Progress

    with interruptible(way_on):
        if not progress:
            yield lambda phase, event: None
            return
        with Progress() as shown:
            yield shown.show
