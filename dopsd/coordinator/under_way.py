"""How many micro-batches of each policy version are at which stage: asked for at every dispatch, so
it is counted as they move and not looked up among all of them."""

from __future__ import annotations

from collections import Counter


class UnderWay:
    """Micro-batches that are generated now, by stage and version."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()

    def move(self, version: int, origin: int | None, to: int | None) -> None:
        """A micro-batch goes from one stage to another; None: it is not under way."""
        if origin is not None:
            self._counts[(origin, version)] -= 1
            if not self._counts[(origin, version)]:
                del self._counts[(origin, version)]
        if to is not None:
            self._counts[(to, version)] += 1

    def oldest_before(self, stage: int) -> int | None:
        """The oldest version of which something has not come to ``stage`` yet."""
        return min((version for at, version in self._counts if at < stage), default=None)
