"""What `dopsd generate` draws with: LoRAs at their weights, and what their files say beside."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dopsd import shown, storage
from dopsd.errors import ConfigError
from dopsd.models.lora_files import file_metadata

MOST_WEIGHT = 100.0
_STEPS = re.compile(r"\bK=(\d+)\b")


@dataclass(frozen=True)
class WeightedLora:
    """One `--lora`, ``FILE`` or ``FILE@weight``."""

    path: str
    weight: float = 1.0

    @classmethod
    def parse(cls, given: str) -> WeightedLora:
        """An ``@`` with no number behind it belongs to the path. Raises ConfigError for a weight
        out of range."""
        path, _, text = given.rpartition("@")
        try:
            weight = float(text)
        except ValueError:
            path, weight = given, 1.0
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
    steps: int | None = None


def said_by(loras: Sequence[WeightedLora]) -> Said:
    """Raises ConfigError for files of several bases, or families."""
    found = [(lora.path, _said(lora.path)) for lora in loras if storage.exists(lora.path)]
    first: tuple[str, Said] | None = None
    for path, said in found:
        if said.base is None:
            continue
        if first is None:
            first = path, said
        elif (said.base, said.family) != (first[1].base, first[1].family):
            raise ConfigError(
                f"--lora: {first[0]} is of {first[1].base}, {path} of {said.base}; allowed: LoRAs "
                "of one base, or --base and --family"
            )
    return first[1] if first else Said()


def _said(path: str) -> Said:
    said = file_metadata(storage.read_bytes(path))
    steps = _STEPS.search(said.get("dopsd.recipe", ""))
    return Said(said.get("dopsd.base"), said.get("dopsd.family"), int(steps[1]) if steps else None)
