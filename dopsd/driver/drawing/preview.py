"""The drawings of a run, in one Ray task where the learners' device is free again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ray

from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.data.pictures.buckets import commonest
from dopsd.data.run_data import preview_samples
from dopsd.data.sample import Sample
from dopsd.evaluation.preview.history import Adapters, sample_history
from dopsd.evaluation.preview.sampler import Files, PreviewSampler
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.models.transformer_folder import is_transformer, transformer_files
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.task import fetch_bytes, run_task
from dopsd.rollout.pictures import Size
from dopsd.run_folder.files import (
    LORA_FILE,
    MODULES,
    PREVIEW,
    PREVIEW_SHEET,
    TEACHER_FILE,
    TRANSFORMERS,
    RunFolder,
    weights_file,
)
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.preview_files import kept_versions, prompt_path
from dopsd.run_folder.prompt_history import Drawn, drawn_prompts, drawn_while_training
from dopsd.run_folder.tracked_pictures import TrackedPicture
from dopsd.run_folder.trackers import track_pictures

Stored = tuple[int, tuple[list[ray.ObjectRef], ...] | None]
"""A version and references of student's and teacher's files; None for the base."""


def draw_preview(config: RunConfig, manifest: Manifest, role: Role) -> list[str]:
    """Draw the run's LoRA, and those kept on the way: the contact sheet, the history, and of the
    own prompts what was not drawn while it trained, which the trackers get as well. Returns what of
    that went wrong.

    ``role``: whose resources the tasks take. Raises DeadlineError or WorkerError.
    """
    samples = preview_samples(config, manifest, config.preview.samples)
    prompts = list(config.preview.prompts)
    bucket = commonest(manifest.buckets)
    size = bucket.height, bucket.width
    before = drawn_prompts(config, size) if drawn_while_training(config) else set()
    stored: list[Stored] = [(0, None)]
    stored += [(version, tuple(map(_put, paths))) for version, paths in _kept(config)]
    drawn: dict[str, bytes] = run_task(
        PREVIEW,
        f"drawing {len(samples)} rows and {len(prompts)} prompts",
        role,
        config.timeouts.startup + config.timeouts.step,
        _draw,
        config,
        samples,
        stored,
        role.device,
        size,
        before,
    )
    owned(config.run.folder).write_all(drawn)
    pictures = [
        TrackedPicture(version, index, prompt, drawn[path])
        for version, _ in stored
        for index, prompt in enumerate(prompts)
        if (path := prompt_path(version, index)) in drawn
    ]
    if not pictures:
        return []
    doing, limit = f"sending {len(pictures)} pictures", config.timeouts.step
    # Where the metrics were sent from: the trackers' own variables are those of Ray's workers.
    problems: list[str] = run_task("trackers", doing, role, limit, track_pictures, config, pictures)
    return problems


def _kept(config: RunConfig) -> list[tuple[int, tuple[list[str], list[str]]]]:
    """(version, files of student and teacher) of all weights that there are, in order."""
    run = RunFolder(config.run.folder)

    def existing(*names: str) -> list[str]:
        return [run.file(name) for name in names if run.has(name)]

    last = config.learner.steps
    if config.adapters == "full":
        return [(last, _transformers(config))]
    kept = []
    for version in kept_versions(config):
        student, teacher = (
            existing(*(weights_file(PREVIEW, version, role, modules) for modules in (False, True)))
            for role in (STUDENT, TEACHER)
        )
        if student and teacher:
            kept.append((version, (student, teacher)))
    files = (existing(LORA_FILE, MODULES[STUDENT]), existing(TEACHER_FILE, MODULES[TEACHER]))
    return [*kept, (last, files)]


def _transformers(config: RunConfig) -> tuple[list[str], list[str]]:
    """Files of student and teacher, which is the student itself, the base (no files), or one of
    its own."""
    kind = FAMILIES[config.model.family].transformer_class
    run = RunFolder(config.run.folder)
    folders = {role: run.file(name) for role, name in TRANSFORMERS.items()}
    student = transformer_files(folders[STUDENT], kind)
    if config.method.teacher == "live":
        return student, student  # under the teacher's context
    own = is_transformer(folders[TEACHER])
    return student, transformer_files(folders[TEACHER], kind) if own else []


def _put(paths: list[str]) -> list[ray.ObjectRef]:
    """Files as references, so that the task, on whatever node, holds one of them at a time."""
    return [ray.put(storage.read_bytes(path)) for path in paths]


def _draw(
    config: RunConfig,
    samples: list[Sample],
    stored: list[Stored],
    device: str,
    size: Size,
    before: set[Drawn],
) -> dict[str, bytes]:
    sampler = PreviewSampler(config, samples, device, size)

    def reader(roles: tuple[list[ray.ObjectRef], ...]) -> Callable[[], Adapters]:
        student: Files = [partial(fetch_bytes, ref) for ref in roles[0]]
        teacher: Files = [partial(fetch_bytes, ref) for ref in roles[1]]
        return lambda: (student, teacher)

    versions = [(number, reader(refs) if refs else None) for number, refs in stored]
    drawn = sample_history(sampler, versions, before)
    return drawn | ({PREVIEW_SHEET: sampler.sheet()} if samples else {})
