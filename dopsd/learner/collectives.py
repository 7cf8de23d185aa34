"""How long a collective of the learners may wait: longer than anything the run waits for.

While one rank waits for the coordinator, the others wait for it in a collective. One that gives up
first ends its process by a signal, and the run loses the message of whoever timed out.
"""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import distributed_c10d

from dopsd.config import TimeoutSection

_GRACE_SECONDS = 300.0
"""For a coordinator that is on its way back, and for the message to arrive."""


def collective_seconds(timeouts: TimeoutSection) -> int:
    """After which a collective may give up."""
    return int(max(timeouts.startup, timeouts.step) + _GRACE_SECONDS)


def hold_on(seconds: float) -> None:
    """Let every process group that exists wait for ``seconds``: those that DeepSpeed makes for
    itself have torch's own limit, which over NCCL is ten minutes."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
