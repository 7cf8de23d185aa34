"""What a new group of learners takes of the budget of restarts."""

from __future__ import annotations

from dopsd.config import LearnerSection
from dopsd.errors import WorkerError


class RestartBudget:
    """Counts restarts of learners and coordinator against ``learner.restarts``.

    ``restarts``: how many are spent already.
    """

    def __init__(self, learner: LearnerSection, restarts: int) -> None:
        self._learner, self.restarts = learner, restarts
        self.world = 0
        """Learners of the newest group; 0 before the first."""

    def begin(self, world: int, trained: bool, cause: str = "") -> tuple[float, str]:
        """A group of ``world`` learners takes the place of another.

        ``trained``: whether the other one had trained a step; ``cause``: what it died of, if it
        said so. Returns the seconds to wait before
        it begins, and why it is there, in words. A group of another size is a resize and spends
        nothing, unless a smaller one comes without a step in between: something else is wrong
        then. Raises WorkerError when the restarts are spent.
        """
        before, self.world = self.world, world
        if before and (world > before or (world < before and trained)):
            return 0.0, f"{world} learners in place of {before}"
        told = f" ({cause})" if cause else ""
        if self.restarts >= self._learner.restarts:
            raise WorkerError(
                f"the learners died again{told}; their {self.restarts} restarts "
                f"(learner.restarts) are spent"
            )
        self.restarts += 1
        return self._learner.pause_before(self.restarts), f"learners died{told}"
