"""What every stage of the build shares: a log with an ETA, and a checkpoint to resume from."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class Progress:
    """Prints one line per ``every`` steps with running means and an ETA, to stdout and a file."""

    def __init__(self, stage: str, total: int, log: Path, start: int = 0, every: int = 100):
        self.stage, self.total, self.every = stage, total, every
        self.log = log
        self.began, self.first, self.warm = time.monotonic(), start, False
        self.window: dict[str, deque[float]] = {}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"from step {start} to {total}, {torch.get_num_threads()} threads")

    def say(self, text: str) -> None:
        """Write one line, stamped with the stage and the wall clock."""
        line = f"[{time.strftime('%H:%M:%S')} {self.stage}] {text}"
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")

    def step(self, step: int, **values: float) -> None:
        """Record the values of ``step`` (counted from 1), and print when it is time."""
        for name, value in values.items():
            self.window.setdefault(name, deque(maxlen=self.every)).append(value)
        if not self.warm:
            # The first step compiles; it would spoil the rate.
            self.say(f"first step after {time.monotonic() - self.began:.0f} s")
            self.began, self.first, self.warm = time.monotonic(), step, True
        elif step % self.every == 0 or step == self.total:
            spent = time.monotonic() - self.began
            rate = (step - self.first) / max(spent, 1e-9)
            means = " ".join(f"{k} {sum(v) / len(v):.4f}" for k, v in self.window.items())
            eta = (self.total - step) / rate / 60
            self.say(f"{step}/{self.total} {means} ({rate:.2f} steps/s, {eta:.1f} min left)")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    torch.save(dict(content), aside)
    os.replace(aside, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of tensors and plain values, or return None if there is none."""
    if not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content
