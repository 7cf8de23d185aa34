"""Which version of the weights generates a step."""

from __future__ import annotations


def policy_version(step: int, max_lag: int) -> int:
    """The version of the weights that generate ``step``: max(0, step - max_lag)."""
    return max(0, step - max_lag)


def teacher_version(policy: int, every: int) -> int:
    """The version of the teacher that goes with a policy version, published every N steps."""
    return policy - policy % every
