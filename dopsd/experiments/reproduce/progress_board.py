"""What trainings beside each other say of themselves; imports little, so that it answers soon."""

from __future__ import annotations

from collections.abc import Sequence


class ProgressBoard:
    """The class behind an actor that every training tells and the driver reads."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, str, int]] = {}
        self._lines: list[str] = []

    def tell(self, name: str, phase: str, step: int, lines: Sequence[str]) -> None:
        """``lines`` are for people to keep, each told once."""
        messages = self._latest.get(name, (0, "", 0))[0]
        self._latest[name] = messages + 1, phase, step
        self._lines += [f"{name}: {line}" for line in lines]

    def read(self) -> tuple[dict[str, tuple[int, str, int]], list[str]]:
        """Messages so far, phase and step by name; and all lines."""
        return self._latest, self._lines
