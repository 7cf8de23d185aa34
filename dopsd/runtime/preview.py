"""The contact sheet, drawn in one Ray task where the learners' device is free again."""

from __future__ import annotations

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.evaluation.preview import draw_sheet
from dopsd.runtime.data import preview_samples
from dopsd.runtime.placement import Role
from dopsd.runtime.run_log import LORA_FILE, TEACHER_FILE
from dopsd.runtime.task import run_task

SHEET = "preview/contact_sheet.png"


def draw_preview(config: RunConfig, manifest: Manifest, role: Role) -> str:
    """Draw the run's LoRA and write the sheet; returns its path.

    ``role``: whose resources the task takes. Raises LateError or WorkerError.
    """
    samples = preview_samples(config, manifest, config.preview.samples)
    student, teacher = (
        storage.read_bytes(storage.join(config.run.folder, name))
        for name in (LORA_FILE, TEACHER_FILE)
    )
    png: bytes = run_task(
        "preview",
        f"drawing {len(samples)} rows",
        role,
        config.deadline.start + config.deadline.step,
        draw_sheet,
        config,
        samples,
        student,
        teacher,
        role.device,
    )
    path = storage.join(config.run.folder, SHEET)
    storage.write_bytes(path, png)
    return path
