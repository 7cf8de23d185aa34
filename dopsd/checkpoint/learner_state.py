"""What a learner needs to resume, as the files of a checkpoint.

Of a LoRA rank 0 puts all of it into the object store of its node, for a task that writes it. Of a
whole model each learner writes its own part of the state straight into the checkpoint's folder, and
reads what it needs of all parts when it resumes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from dopsd.checkpoint.parts import FileRecord
from dopsd.checkpoint.slices import Slice, write_slices
from dopsd.files import storage
from dopsd.ray_cluster.failures import error_message
from dopsd.records import pack, unpack
from dopsd.run_folder.checkpoint_files import folder_of

PREFIX = "learner-"
"""Of the names of files that learners write themselves."""
STUDENT_FILE, EMA_FILE, OPTIMIZER_FILE = (
    f"{name}.safetensors" for name in ("student", "ema", "optimizer")
)
FILES = (STUDENT_FILE, EMA_FILE, OPTIMIZER_FILE)


@dataclass
class LearnerState:
    """A learner between two steps; fp32 tensors on the CPU, by parameter name."""

    step: int
    """Optimizer steps behind it, skipped ones included: the next one to train."""
    student: dict[str, Tensor]
    ema: dict[str, Tensor]
    updates: int
    """Updates that the optimizer counts: without the skipped ones."""
    moments: dict[str, Tensor]
    skipped: int = 0
    """Of the last steps, those in a row that were skipped."""
    scalars: dict[str, float] = field(default_factory=dict)
    """What the optimizer knows of all weights together."""

    def to_files(self) -> dict[str, bytes]:
        counted: dict[str, Any] = {"step": self.step, "updates": self.updates}
        counted |= {"skipped": self.skipped, "scalars": self.scalars}
        return {
            STUDENT_FILE: pack(self.student, {"step": self.step}),
            EMA_FILE: pack(self.ema, {"step": self.step}),
            OPTIMIZER_FILE: pack(self.moments, counted),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> LearnerState:
        student, meta = unpack(files[STUDENT_FILE])
        ema, _ = unpack(files[EMA_FILE])
        moments, counted = unpack(files[OPTIMIZER_FILE])
        scalars = counted.get("scalars", {})  # checkpoints of older releases have none
        return cls(
            meta["step"], student, ema, counted["updates"], moments, counted["skipped"], scalars
        )


@dataclass(frozen=True)
class SlicedState:
    """One rank's part of a learner between two steps. The slices are those of live tensors: to be
    written before the next step."""

    step: int
    """Optimizer steps behind it, skipped ones included: the next one to train."""
    updates: int
    """Updates that the optimizer counts: without the skipped ones."""
    slices: Iterable[Slice]
    skipped: int = 0
    """Of the last steps, those in a row that were skipped."""


@dataclass(frozen=True)
class WrittenSlices:
    """What rank 0 tells the coordinator: all ranks' files, or why there are none."""

    slices: dict[str, FileRecord] = field(default_factory=dict)
    problem: str = ""


def write_state(
    state: SlicedState,
    root: str,
    rank: int,
    world: int,
    gather: Callable[[Any], Sequence[Any]],
    alive: Callable[[], None] = lambda: None,
) -> WrittenSlices:
    """Write this rank's file under the checkpoint folder ``root``; collective.

    ``gather`` collects a value of every rank on all of them; ``alive`` is called before each
    slice: a large file takes long without being stuck. A rank that cannot write costs the
    checkpoint, not the run. The name of a file is new each time: what an earlier attempt left of
    the same step stays whole until the coordinator puts this state in its place.
    """
    name = f"{PREFIX}{rank:05d}-of-{world:05d}-{uuid.uuid4().hex[:8]}.safetensors"
    meta = {"record": "learner", "step": state.step, "updates": state.updates}
    meta["skipped"] = state.skipped
    own: tuple[str, FileRecord | None, str]
    try:
        path = storage.join(folder_of(root, state.step), name)
        own = name, write_slices(path, _watched(state.slices, alive), meta), ""
    except Exception as error:  # whatever it is, the other ranks must not wait for this one
        own = name, None, f"learner {rank}: {error_message(error)}"
    slices, problems = {}, []
    for file, record, problem in gather(own):
        if record is None:
            problems.append(problem)
        else:
            slices[file] = record
    return WrittenSlices(slices, "; ".join(problems))


def _watched(slices: Iterable[Slice], alive: Callable[[], None]) -> Iterator[Slice]:
    def values(read: Callable[[], Tensor]) -> Tensor:
        alive()
        return read()

    for piece in slices:
        yield replace(piece, values=partial(values, piece.values))
