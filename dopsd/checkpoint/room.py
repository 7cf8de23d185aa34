"""How much of a disk a run needs at least: for a checkpoint, and for what it exports at the end."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.config import RunConfig
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.files.disk import free_bytes, free_space, megabytes
from dopsd.models.families.family import DTYPES
from dopsd.run_folder.files import TRANSFORMERS

_FP32 = 4


@dataclass(frozen=True)
class RoomNeeded:
    """Bytes."""

    checkpoint: int = 0
    export: int = 0

    @classmethod
    def of(cls, config: RunConfig, numel: int) -> RoomNeeded:
        """Of a run that trains ``numel`` weights; tensors alone, and of the published weights one
        version, so that nobody is refused who might have room."""
        cast, decay = DTYPES[config.model.dtype].itemsize, config.method.teacher_decay
        kept, sent = config.learner.moments, 0 if config.source == "fused" else cast
        if config.adapters != "full":
            files = 3  # the student's LoRA has two names
            return cls(numel * (_FP32 * (2 + kept) + 2 * sent), numel * _FP32 * files)
        averages = config.method.objective != "sft" and 0.0 < decay < 1.0
        masters = 2 if averages else 1
        return cls(numel * (_FP32 * (masters + kept) + sent), numel * cast * masters)


def refuse_without_room(config: RunConfig, needed: RoomNeeded, resume: bool) -> None:
    """Raises ConfigError when the disk of a local run folder certainly cannot hold a checkpoint and
    the export. What a run in it leaves behind that goes before this one writes counts as free."""
    folder = config.run.folder
    if storage.is_remote(folder):
        return
    wanted = needed.export + (0 if resume else needed.checkpoint)
    lacking = wanted - free_bytes(folder)
    if lacking > 0 and lacking > _replaced(folder, resume):
        what = "the export takes" if resume else "a checkpoint and the export take"
        raise ConfigError(
            f"run.folder: {folder}: {free_space(folder)}, but {what} {megabytes(wanted)}; allowed: "
            "a disk with as much room, or s3://"
        )


def _replaced(folder: str, resume: bool) -> int:
    """Bytes of what goes before the run writes."""
    final = tuple(f"{name}/" for name in TRANSFORMERS.values())
    files = storage.list_files(folder)
    return sum(size for name, size in files if not resume or name.startswith(final))


def shortage(root: str, checkpoint: int, needed: RoomNeeded) -> str | None:
    """What to tell while it can be mended: when the disk of the checkpoints ``root`` has no room
    for another of ``checkpoint`` bytes and for the export, or None."""
    if storage.is_remote(root) or not needed.export:
        return None
    wanted = checkpoint + needed.export
    if free_bytes(root) >= wanted:
        return None
    return (
        f"{root}: {free_space(root)}, but the next checkpoint and the export take "
        f"{megabytes(wanted)}: make room before training ends"
    )
