"""In place of whole trainings, where only their order matters."""

from __future__ import annotations

import time
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import ModelError


def stand_in(config: RunConfig, show: Show, replace: bool, take_over: bool) -> None:
    """Called as ``driver.train.train``, in a Ray task: the run `bad` fails; another one goes on
    until a file `failed` beside its folder says that this is known, and then makes its folder."""
    folder = Path(config.run.folder)
    show("train", Report([f"{config.run.name} begins"]))
    (folder.parent / f"begun-{config.run.name}").touch()
    if config.run.name == "bad":
        raise ModelError("no_such_module matches nothing")
    deadline = time.monotonic() + 60
    while not (folder.parent / "failed").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    folder.mkdir()
