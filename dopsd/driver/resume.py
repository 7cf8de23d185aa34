"""What a run resumes from, and how an error says so."""

from __future__ import annotations

import contextlib
import shlex

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.folder import complete_steps
from dopsd.checkpoint.manager import newest_checkpoint
from dopsd.config import RunConfig
from dopsd.errors import CheckpointError, DopsdError, RunLockLost, StorageError
from dopsd.run_folder.files import RunFolder


def refuse_unless_resumable(config: RunConfig, identity: RunIdentity | None = None) -> str:
    """What the run resumes from, in words. Raises CheckpointError when nothing fits.

    ``identity``: what a checkpoint's data must agree with; None while that is not known yet.
    """
    checkpoint, refused = newest_checkpoint(config, identity)
    if checkpoint is None:
        root = RunFolder(config.run.folder).checkpoints
        raise CheckpointError("; ".join(refused) or f"{root}: no checkpoint; nothing to resume")
    words = f"resuming from step {checkpoint.step}"
    return f"{words}; refused: {'; '.join(refused)}" if refused else words


def with_resume_command(error: DopsdError, config: RunConfig) -> DopsdError:
    """The same error, with the command that resumes the run where a checkpoint is saved."""
    if isinstance(error, RunLockLost):
        return error
    folder, steps = config.run.folder, []
    with contextlib.suppress(OSError, StorageError):  # which may be why the run ended
        steps = complete_steps(RunFolder(folder).checkpoints)
    if not steps:
        return error
    command = f"dopsd train --resume {shlex.quote(folder)}"
    return type(error)(f"{error}; step {steps[-1]} is saved, resume with: {command}")
