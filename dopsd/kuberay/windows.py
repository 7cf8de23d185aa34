"""How long Kubernetes and Ray wait for a run that is asked to end: long enough to save.

A pod that is asked to go is drained by Ray, meanwhile dopsd saves, and only then the kubelet kills:
grace > drain > step + save. A job that is stopped has a window of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.plan import Plan

_UPLOAD = 100e6
"""Bytes per second that a checkpoint takes to S3 and back."""
_DRAIN = 120
"""Seconds: what AWS gives a spot machine; Google's 25 s are too few for anything large."""
_TEARDOWN = 30
_STOP = 300
_MOST = 900


@dataclass(frozen=True)
class Windows:
    """Seconds."""

    drain: int
    """RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S."""
    stop: int
    """RAY_JOB_STOP_WAIT_TIME_S."""

    @property
    def grace(self) -> int:
        """terminationGracePeriodSeconds."""
        return self.drain + _TEARDOWN

    @classmethod
    def of(cls, plan: Plan) -> Windows:
        """Of a run: twice its planned step and save, and never less than the usual."""
        saved = plan.demand.trained * 16 + plan.demand.publication()
        # Learners of a whole model write their own parts, side by side.
        writers = plan.config.learner.workers if plan.config.adapters == "full" else 1
        needed = 2 * (plan.shipped.seconds + 2 * saved / (_UPLOAD * writers))
        drain = min(_MOST, max(_DRAIN, _tens(needed)))
        return cls(drain, max(_STOP, 2 * drain))


def _tens(seconds: float) -> int:
    return int(-(-seconds // 10) * 10)
