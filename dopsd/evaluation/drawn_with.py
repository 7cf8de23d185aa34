"""What `dopsd generate` draws with: LoRAs at their weights, and what their files say beside."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dopsd import shown
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.models.lora.files import file_metadata, path_and_number

MOST_WEIGHT = 100.0
_STEPS = re.compile(r"\bK=(\d+)\b")


@dataclass(frozen=True)
class WeightedLora:
    """One `--lora`, ``FILE`` or ``FILE@weight``."""

    path: str
    weight: float = 1.0

    @classmethod
    def parse(cls, given: str) -> WeightedLora:
        """Raises ConfigError for a weight out of range."""
        path, weight = path_and_number(given)
        if not path or not math.isfinite(weight) or abs(weight) > MOST_WEIGHT:
            raise ConfigError(
                f"--lora: {shown.value(given)}, allowed: FILE or FILE@weight, a weight from "
                f"-{MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
            )
        return cls(path, weight)

    def at(self, path: str) -> WeightedLora:
        return replace(self, path=path)

    def __str__(self) -> str:
        """Without the folder that it lies in."""
        return f"{self.path.rpartition('/')[2]}@{self.weight:g}"


@dataclass(frozen=True)
class Said:
    """What LoRA files of dopsd say of how they are drawn with; None where they do not."""

    base: str | None = None
    family: str | None = None
    revision: str | None = None
    steps: int | None = None

    @property
    def model(self) -> tuple[str | None, ...]:
        return self.base, self.family, self.revision


def said_by(loras: Sequence[WeightedLora], of_one_base: bool = True) -> Said:
    """What the first of dopsd's files says. Raises ConfigError for files of several bases, families
    or revisions, where they have to be ``of_one_base``."""
    found = [(lora.path, _said(lora.path)) for lora in loras if storage.exists(lora.path)]
    first: tuple[str, Said] | None = None
    for path, said in found:
        if said.base is None:
            continue
        if first is None:
            first = path, said
        elif of_one_base and said.model != first[1].model:
            raise ConfigError(
                f"--lora: {first[0]} is of {first[1].base}, {path} of {said.base}; allowed: LoRAs "
                "of one base, or --base and --family"
            )
    return first[1] if first else Said()


def _said(path: str) -> Said:
    said = file_metadata(storage.read_bytes(path))
    steps = _STEPS.search(said.get("dopsd.recipe", ""))
    base, family, revision = (said.get(f"dopsd.{key}") for key in ("base", "family", "revision"))
    return Said(base, family, revision, int(steps[1]) if steps else None)
