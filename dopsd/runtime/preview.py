"""The drawings of a run, in one Ray task where the learners' device is free again."""

from __future__ import annotations

from collections.abc import Callable

import ray

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.data.sample import Sample
from dopsd.evaluation.preview import Drawer
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.runtime.data import preview_samples
from dopsd.runtime.history import Adapters, draw_history, kept_path, kept_versions
from dopsd.runtime.placement import Role
from dopsd.runtime.run_log import LORA_FILE, TEACHER_FILE
from dopsd.runtime.task import run_task

SHEET = "preview/contact_sheet.png"
Stored = tuple[int, tuple[ray.ObjectRef, ray.ObjectRef] | None]
"""A version and references of its adapters' files; None for the base."""


def draw_preview(config: RunConfig, manifest: Manifest, role: Role) -> str:
    """Draw the run's LoRA: the contact sheet, whose path is returned, and the history.

    ``role``: whose resources the task takes. Raises LateError or WorkerError.
    """
    samples = preview_samples(config, manifest, config.preview.samples)
    stored: list[Stored] = [(0, None)]
    for version in kept_versions(config):
        files = tuple(kept_path(version, adapter) for adapter in (STUDENT, TEACHER))
        # One that was too large, or that the storage refused, is not there.
        if all(storage.exists(storage.join(config.run.folder, name)) for name in files):
            stored.append((version, _put(config, *files)))
    stored.append((config.learner.steps, _put(config, LORA_FILE, TEACHER_FILE)))

    drawn: dict[str, bytes] = run_task(
        "preview",
        f"drawing {len(samples)} rows",
        role,
        config.deadline.start + config.deadline.step,
        _draw,
        config,
        samples,
        stored,
        role.device,
    )
    for name, payload in drawn.items():
        storage.write_bytes(storage.join(config.run.folder, name), payload)
    return storage.join(config.run.folder, SHEET)


def _put(config: RunConfig, student: str, teacher: str) -> tuple[ray.ObjectRef, ray.ObjectRef]:
    """Two files of the run folder as references, so that the task holds one version at a time."""
    folder = config.run.folder
    first, second = (
        ray.put(storage.read_bytes(storage.join(folder, name))) for name in (student, teacher)
    )
    return first, second


def _draw(
    config: RunConfig, samples: list[Sample], stored: list[Stored], device: str
) -> dict[str, bytes]:
    drawer = Drawer(config, samples, device)

    def reader(references: tuple[ray.ObjectRef, ray.ObjectRef]) -> Callable[[], Adapters]:
        return lambda: (ray.get(references[0]), ray.get(references[1]))

    versions = [(number, reader(refs) if refs else None) for number, refs in stored]
    drawn = draw_history(drawer, versions)
    return drawn | {SHEET: drawer.sheet()}
