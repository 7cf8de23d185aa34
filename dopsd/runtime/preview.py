"""The contact sheet, drawn in one Ray task where the learners' device is free again."""

from __future__ import annotations

import ray

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.errors import LateError
from dopsd.evaluation.preview import PreviewSample, draw_sheet
from dopsd.runtime.data import preview_samples
from dopsd.runtime.failures import own_error
from dopsd.runtime.placement import Role
from dopsd.runtime.run_log import LORA_FILE, TEACHER_FILE

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
    task = ray.remote(num_cpus=role.cpus, num_gpus=role.gpus, max_retries=1)(_draw)
    reference = task.remote(config, samples, student, teacher, role.device)
    limit = config.deadline.start + config.deadline.step
    try:
        png = ray.get(reference, timeout=limit)
    except ray.exceptions.GetTimeoutError:
        raise LateError(f"preview is late: drawing {len(samples)} rows for {limit:g} s") from None
    except ray.exceptions.RayError as error:
        raise own_error(error, "preview") from None
    path = storage.join(config.run.folder, SHEET)
    storage.write_bytes(path, png)
    return path


def _draw(
    config: RunConfig, samples: list[PreviewSample], student: bytes, teacher: bytes, device: str
) -> bytes:
    return draw_sheet(config, samples, student, teacher, device)
