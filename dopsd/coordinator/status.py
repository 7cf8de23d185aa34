"""What a person wants to see of a run, out of the coordinator's parts; called under its lock."""

from __future__ import annotations

from dopsd.coordinator.dispatcher import Dispatcher
from dopsd.coordinator.learner_group import LearnerGroup
from dopsd.coordinator.messages import RunStatus
from dopsd.coordinator.run_files import RunFiles
from dopsd.coordinator.stream_reader import StreamReader
from dopsd.errors import DeadlineError

_GRACE = 5.0
"""Seconds that the pools' own deadlines are given before a learner's wait times out."""


def run_status(
    dispatcher: Dispatcher,
    reader: StreamReader,
    learners: LearnerGroup,
    files: RunFiles,
    *,
    still: float,
    learner_restarts: int,
    ended: bool,
) -> RunStatus:
    return RunStatus(
        step=dispatcher.admission.trained_steps,
        steps=dispatcher.config.learner.steps,
        latest=dict(files.log.latest),
        losses=files.log.losses(),
        counts=dispatcher.admission.counts(),
        roles=roles_doing(dispatcher, reader, learners),
        attempt=learners.attempt,
        training=learners.training,
        waiting=learners.waiting,
        still=still,
        saved=files.checkpoints.saved,
        save_seconds=files.checkpoints.seconds,
        restarts=reader.restarts + dispatcher.restarts,
        learner_restarts=learner_restarts,
        ended=ended,
        notices=notices_of(dispatcher, reader, files),
    )


def roles_doing(
    dispatcher: Dispatcher, reader: StreamReader, learners: LearnerGroup
) -> dict[str, str]:
    """What each role is doing, in words."""
    waiting = len(dispatcher.blocks)
    ahead = f", {waiting} micro-batches ahead" if waiting else ""
    encoder = reader.doing if dispatcher.roles.encoder else "none, contexts are read"
    pools = {pool.role.name: pool.doing() for pool in dispatcher.pools}
    return {"encoder": encoder + ahead, **pools, "learner": learners.doing}


def stalled(
    step: int,
    still: float,
    dispatcher: Dispatcher,
    reader: StreamReader,
    learners: LearnerGroup,
) -> DeadlineError | None:
    """What to say of ``still`` seconds without a move: the pools know more of who timed out, so
    nothing before they had the time to say it."""
    if still <= max(dispatcher.limit, reader.limit) + _GRACE:
        return None
    roles = roles_doing(dispatcher, reader, learners).items()
    doing = "; ".join(f"{role}: {what}" for role, what in roles)
    return DeadlineError(f"step {step}: nothing moved for {still:.0f} s: {doing}")


def notices_of(dispatcher: Dispatcher, reader: StreamReader, files: RunFiles) -> list[str]:
    damage = files.ledger.notices + files.log.notices
    return files.checkpoints.notices + reader.notices + dispatcher.notices + damage
