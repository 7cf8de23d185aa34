"""Checkpoints: folders that are complete or absent, on local disk or S3. Knows no Ray.

``RUN/checkpoints/step-000120/`` holds what a run needs to resume after 120 optimizer steps:

- ``student.safetensors``, ``ema.safetensors``: fp32 weights; ``optimizer.safetensors``: AdamW's
  moments by parameter name, so that any number of learners and any ZeRO stage can take them;
- ``policy-000118.student.safetensors`` and ``.teacher``: the weights of the versions that still
  generate (one more than the policy lag), as they were published;
- of a whole model (``adapters: full``) in their place: ``learner-*.safetensors``, of each learner
  the slices that it owns (``dopsd/checkpoint/slices.py``), and ``bucket-*.safetensors``, weights as
  they were published, with ``policies.json``, which says what they are part of;
- ``checkpoint.json``, written last: step, config, data fingerprint, size and SHA-256 of every other
  file, and of itself. A folder without it is no checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dopsd import __version__
from dopsd.checkpoint.parts import (
    CheckpointParts,
    Count,
    FileRecord,
    check_parts,
    check_size,
    record_of,
)
from dopsd.errors import CheckpointError, StorageError, message_line
from dopsd.files import storage
from dopsd.files.seal import sealed, unsealed
from dopsd.run_folder.checkpoint_files import (
    MANIFEST,
    folder_of,
    is_left_behind,
    owned_checkpoints,
    remove_step,
    step_name,
    steps,
)

FORMAT: Literal["dopsd-checkpoint"] = "dopsd-checkpoint"
FORMAT_VERSION: Literal[2] = 2
_MANIFEST_BYTES = 2**26
"""What no manifest is as large as (64 MiB)."""
_MOVES = 4
"""Files that are brought to their names side by side."""


class OtherVersion(CheckpointError):
    """A checkpoint that another dopsd can read."""


class _OtherVersion(ValueError):
    """The same, of a manifest's content."""


class CheckpointManifest(BaseModel):
    """What ``checkpoint.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dopsd-checkpoint"] = FORMAT
    format_version: Literal[2] = FORMAT_VERSION
    step: Count
    """Optimizer steps that were taken: the next one, and the position in the plan."""
    policy_versions: tuple[Count, ...]
    """Versions of the weights that are kept beside it, as published."""
    config: dict[str, Any]
    """The resolved config, without credentials."""
    data: str
    """Fingerprint of the data set."""
    plan: str
    """Key of the plan: of the row groups, the seed and the batch sizes."""
    learners: Annotated[int, Field(ge=1)]
    dopsd: str = __version__
    torch: str = torch.__version__
    written: float
    """Seconds since the epoch."""
    files: dict[str, FileRecord]
    large: dict[str, FileRecord] = {}
    """Files that nobody reads as a whole: slices of learners, and buckets of published weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all read and are as the manifest says; ``files`` holds all
    but the large ones."""

    path: str
    manifest: CheckpointManifest
    files: dict[str, bytes]

    @property
    def step(self) -> int:
        return self.manifest.step


def policy_file(version: int, adapter: str) -> str:
    """Name of an adapter's published weights inside a checkpoint."""
    return f"policy-{version:06d}.{adapter}.safetensors"


def write_checkpoint(
    root: str,
    files: Mapping[str, bytes],
    *,
    step: int,
    policy_versions: tuple[int, ...],
    config: dict[str, Any],
    data: str,
    plan: str,
    learners: int,
    parts: CheckpointParts | None = None,
    may_write: Callable[[], None] = lambda: None,
) -> str:
    """Write, read back, and commit by the manifest; returns the folder.

    ``files`` are written here, the tensors of ``parts`` by whoever has them: only records of those
    come to this process. ``may_write`` raises when the folder is another one's by now, and is asked
    before anything gets a name of a checkpoint. Raises CheckpointError when a file does not read
    back as it was written or somebody else's folder has its place, and whatever the storage raises:
    then there is no checkpoint of this step.
    """
    path = folder_of(root, step)
    whole, large, slices = (parts.whole, parts.large, parts.slices) if parts else ({}, {}, {})
    _take_place(root, step, [*files, *whole, MANIFEST], slices)
    records = {name: _write(path, name, payload) for name, payload in files.items()}
    others: dict[str, FileRecord] = {}
    if parts:
        aside = {storage.temporary_name(name): name for name in whole}
        passed = {temporary: whole[name] for temporary, name in aside.items()}
        written = dict(parts.writer.write(path, {**passed, **large}))
        _bring(path, aside, may_write)
        records |= {name: written[temporary] for temporary, name in aside.items()}
        others = {**{name: written[name] for name in large}, **slices}
        passed_on = {**{name: records[name] for name in whole}, **others}
        parts.writer.check(path, passed_on)
        # Where the writer sees them is not where the manifest goes unless this process does too.
        for name, record in passed_on.items():
            check_size(path, name, record)
    manifest = CheckpointManifest(
        step=step,
        policy_versions=policy_versions,
        config=config,
        data=data,
        plan=plan,
        learners=learners,
        written=time.time(),
        files=records,
        large=others,
    )
    payload = sealed(manifest.model_dump(mode="json"))
    may_write()
    storage.write_bytes(storage.join(path, MANIFEST), payload, durable=True)
    return path


def _bring(path: str, names: Mapping[str, str], may_write: Callable[[], None]) -> None:
    """Give files that lie in ``path`` their names there, by what they were written as."""

    def bring(temporary: str) -> None:
        may_write()  # before each: a process that was stopped in between may be superseded
        storage.move(storage.join(path, temporary), storage.join(path, names[temporary]))

    with ThreadPoolExecutor(_MOVES) as pool:
        list(pool.map(bring, names))


def _take_place(
    root: str, step: int, names: Iterable[str], slices: Mapping[str, FileRecord]
) -> None:
    """Whatever of ours lay there is no checkpoint any more, files of others stay; ``names`` are
    ours from now on."""
    own, entry = owned_checkpoints(root), f"{step_name(step)}/"
    if entry in own.entries():
        remove_step(root, step, keep=slices)
    else:
        path = own.file(entry)
        there = sorted(storage.names(path) - slices.keys())
        if found := [name for name in there if not is_left_behind(name)]:
            raise CheckpointError(
                f"{path} holds {found[0]} and is no checkpoint of this run; allowed: moving it away"
            )
        for name in there:
            storage.remove(storage.join(path, name))
    own.adopt(entry, *(entry + name for name in names))


def read_manifest(path: str) -> CheckpointManifest:
    """Raises CheckpointError for a folder that is no checkpoint of this dopsd, OtherVersion where
    another dopsd reads it."""
    file = storage.join(path, MANIFEST)
    if not storage.exists(file):
        raise CheckpointError(f"{path}: incomplete, it has no {MANIFEST}")
    try:
        manifest = _parsed(_content(file))
    except _OtherVersion as error:
        raise OtherVersion(f"{file}: not a checkpoint of this dopsd ({error})") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not a checkpoint of this dopsd ({error})") from None
    name = path.rstrip("/").rsplit("/", 1)[-1]
    if name != f"step-{manifest.step:06d}":
        raise CheckpointError(f"{file}: says step {manifest.step}, but lies in {name}")
    return manifest


def _content(file: str) -> bytes:
    """Raises ValueError for what cannot be a manifest, and waits for no pipe."""
    if (size := storage.size(file)) > _MANIFEST_BYTES:
        raise ValueError(f"{size} bytes")
    return storage.read_bytes(file)


def _parsed(content: bytes) -> CheckpointManifest:
    """Raises ValueError, saying what is wrong in a line."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("JSON: cannot be read") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"format: not {FORMAT}")
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise _OtherVersion(
            f"format_version: {str(version)[:20]}, this dopsd reads {FORMAT_VERSION}; resume with "
            "the dopsd that wrote it"
        )
    try:
        return CheckpointManifest.model_validate_json(json.dumps(unsealed(values)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_checkpoint(path: str) -> Checkpoint:
    """Every file, each compared with the manifest. Raises CheckpointError naming what is wrong."""
    manifest = read_manifest(path)
    files = {}
    for name, record in manifest.files.items():
        check_size(path, name, record)
        file = storage.join(path, name)
        files[name] = storage.read_bytes(file)
        if record_of(files[name]) != record:
            raise CheckpointError(f"{file}: damaged, its SHA-256 is not the manifest's")
    list(check_parts(path, manifest.large))
    return Checkpoint(path, manifest, files)


def complete_steps(root: str) -> list[int]:
    """Steps of the committed checkpoints under ``root``, ascending."""
    manifests = {step: storage.join(folder_of(root, step), MANIFEST) for step in steps(root)}
    return [step for step, manifest in manifests.items() if storage.exists(manifest)]


def newest_good(
    root: str, refusal: Callable[[CheckpointManifest], str | None] = lambda manifest: None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole and fits, and why each newer one was refused.

    ``refusal`` says what does not fit about a whole checkpoint, or None. Whatever goes wrong with
    one costs that one alone. Raises the storage's error when none is good and one could not be
    read: it may be the good one.
    """
    refused = []
    unread: Exception | None = None
    for step in reversed(steps(root)):
        path = folder_of(root, step)
        try:
            checkpoint = read_checkpoint(path)
            why = refusal(checkpoint.manifest)
        except CheckpointError as error:
            refused.append(str(error))
        except Exception as error:
            refused.append(f"{path}: {message_line(error)}")
            if isinstance(error, (OSError, StorageError)):
                unread = unread or error
        else:
            if why is None:
                return checkpoint, refused
            refused.append(f"{path}: {why}")
    if unread:
        raise unread
    return None, refused


def remove_unfinished(root: str, step: int) -> None:
    """Remove what was written of a checkpoint that was not committed."""
    if not storage.exists(storage.join(folder_of(root, step), MANIFEST)):
        remove_step(root, step)


def prune(root: str, newest: int, keep_last: int, keep_every: int) -> tuple[list[int], list[str]]:
    """Remove checkpoints older than that of step ``newest``, just committed; returns their steps,
    and what stays of them since it is no file of ours.

    Kept: the ``keep_last`` newest complete ones up to ``newest``, those of every ``keep_every``-th
    step, and whatever is newer: a run that resumed from an older checkpoint, because a newer one
    is damaged, must not lose the good ones to it.
    """
    all_steps = steps(root)
    complete = [step for step in complete_steps(root) if step <= newest]
    if newest not in complete:
        return [], []
    kept = set(complete[-keep_last:]) | {step for step in all_steps if step > newest}
    if keep_every:
        kept |= {step for step in complete if step % keep_every == 0}
    ours = owned_checkpoints(root).entries()
    gone = [step for step in all_steps if step not in kept and f"{step_name(step)}/" in ours]
    return gone, [name for step in gone for name in remove_step(root, step)]


def _write(path: str, name: str, payload: bytes) -> FileRecord:
    file, record = storage.join(path, name), record_of(payload)
    storage.write_bytes(file, payload, durable=True)
    if record_of(storage.read_bytes(file)) != record:
        raise CheckpointError(f"{file}: does not read back as it was written")
    return record
