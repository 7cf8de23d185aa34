"""`dopsd evaluate`: pictures, then scores, each kept by what made it, then the table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from dopsd.data.pictures.images import BadImage, decode_image
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.diversity import DIVERSITY, Drawings, distance_of
from dopsd.evaluation.folder import (
    PAGE,
    PICTURES,
    PROMPTS,
    RESULTS,
    SCORES,
    TABLE,
    check_out,
    owned,
)
from dopsd.evaluation.generate import refuse_mixed
from dopsd.evaluation.metrics import METRICS, make_metric
from dopsd.evaluation.prompts import prompts_file
from dopsd.evaluation.results import Results, summarize
from dopsd.evaluation.scoring import ImageEntry, ImageSet, Scores
from dopsd.evaluation.spec import EvaluateSpec, resolve
from dopsd.evaluation.worker import EvaluationWorker
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.models.lora.fit import lora_fit
from dopsd.models.pretrained import MissingWeights
from dopsd.models.transformer_folder import digest_of, transformer_files
from dopsd.ray_cluster.connect import connect, gpus_to_come
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role, uses_gpus
from dopsd.ray_cluster.reservation import Reservation
from dopsd.report.evaluation import evaluation_page

Show = Callable[[str, str], None]
"""Called with a phase (`draw`, `score`) and what is being done now."""
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
"""Whose versions can change a picture."""


def evaluate(spec: EvaluateSpec, show: Show = lambda phase, message: None) -> Results:
    """Draw what is not drawn yet, score what is not scored yet, write the tables.

    Called again with the same spec it resumes where it stopped; pictures and scores of another
    making (weights, LoRA, size, steps, dtype, versions) lie in other folders and are not read.
    Raises a DopsdError with one clear line when it cannot, before anything is drawn where the
    folder is not an evaluation's.
    """
    spec = resolve(spec)
    check_out(spec.out)
    references = _read_references(spec)
    missing = _unavailable(spec)
    loras = _read_loras(spec)
    connect()
    role = _role(spec, gpus_to_come(asked=spec.device == "cuda"))
    sets = _image_sets(spec, role.device, loras)
    own = owned(spec.out)
    own.claim(PICTURES, SCORES)
    own.write(PROMPTS, prompts_file(own.file(PROMPTS), spec.prompts))
    with (
        Reservation(f"the evaluation {spec.out}", partial(show, "draw")) as place,
        JobPool(
            EvaluationWorker,
            (spec, role.device),
            role,
            start_s=spec.start_seconds,
            step_s=spec.step_seconds,
            restarts=spec.restarts,
        ) as pool,
    ):
        place.wait(lambda: [role], spec.start_seconds)
        _generate(spec, pool, sets, loras, show)
        scores = Scores(spec.out, spec.batch, sets, references)
        for choice in spec.metrics:
            if choice.name not in missing:
                try:
                    scores.add(pool, choice, partial(show, "score"))
                except MissingWeights as error:
                    missing[choice.name] = str(error)
        drawings = Drawings(spec.out, sets)
        measured = [choice for choice in spec.metrics if choice.name not in missing]
        if drawings:
            try:
                choice = distance_of(measured, spec.base)
                drawings.add(pool, choice, partial(show, "score"))
            except MissingWeights as error:
                missing[DIVERSITY] = str(error)
    columns = {
        name: column for choice in measured for name, column in METRICS[choice.name].columns.items()
    }
    results = summarize(scores.all(), spec.models, columns, missing, _settings(spec))
    results.diversity = drawings.all()
    record, table = results.to_json(), results.markdown()
    page = evaluation_page(record, table, spec.out)
    own.write_all({RESULTS: record.encode(), TABLE: table.encode(), PAGE: page.encode()})
    return results


def _read_loras(spec: EvaluateSpec) -> dict[str, bytes]:
    """Bytes of every LoRA, and of what was trained beside it, by its path.

    Raises ModelError for a file that is no safetensors, whose layers have other sizes than the
    base's, or that fits the base in part, unless the spec allows that.
    """
    payloads = {path: storage.read_bytes(path) for model in spec.models for path in model.files}
    if not payloads:
        return {}
    family = FAMILIES[spec.family](spec.base, spec.revision)
    skeleton = family.skeleton()
    sizes = {
        name: module.in_features
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for path, payload in payloads.items():
        try:
            tensors = load(payload)
        except SafetensorError as error:
            raise ModelError(f"{path}: not a safetensors file ({error})") from None
        for key, tensor in sorted(tensors.items()):  # safetensors hands them over in any order
            name, matched, _ = key.removeprefix("transformer.").partition(".lora_A.")
            if matched and name in sizes and tensor.shape[1] != sizes[name]:
                raise ModelError(
                    f"{path}: made for another base: its {name} takes {tensor.shape[1]} features, "
                    f"here it takes {sizes[name]}"
                )
    pipeline = getattr(diffusers, family.pipeline_class)
    for model in spec.models:
        refuse_mixed({path: payloads[path] for path in model.loras})
    for path in {path for model in spec.models for path in model.loras}:
        lora_fit(pipeline, skeleton, path, payloads[path]).check(path, spec.partial)
    return payloads


def _read_references(spec: EvaluateSpec) -> dict[str, str]:
    """Digest of every reference picture by its path. Raises ConfigError for one that is none."""
    digests = {}
    for path in {path for prompt in spec.prompts for path in prompt.references}:
        payload = storage.read_bytes(path)
        try:
            decode_image(payload)
        except BadImage as error:
            raise ConfigError(f"reference {path}: {error}") from None
        digests[path] = hashlib.sha256(payload).hexdigest()
    return digests


def _unavailable(spec: EvaluateSpec) -> dict[str, str]:
    """Why a metric cannot be measured, for those of which that is plain before drawing."""
    reasons = {}
    for choice in spec.metrics:
        try:
            make_metric(choice.name, choice.model).check()
        except MissingWeights as error:
            reasons[choice.name] = str(error)
    return reasons


def _role(spec: EvaluateSpec, cluster_gpus: float) -> Role:
    """Resources of the workers. Raises as ``uses_gpus``."""
    gpus = spec.gpus if uses_gpus(spec.device, cluster_gpus) else 0.0
    return Role("evaluation", spec.workers, spec.cpus, gpus)


def _image_sets(spec: EvaluateSpec, device: str, loras: dict[str, bytes]) -> list[ImageSet]:
    """Every model at every number of steps, the base first, with what is drawn already."""
    common = {
        "family": spec.family,
        "base": model_identity(spec.base, spec.revision),
        "dtype": spec.dtype,
        "size": [spec.height, spec.width],
        "device": device,
        "versions": [version(library) for library in _LIBRARIES],
    }
    sets = []
    for model in spec.models:
        weights: dict[str, Any] = {
            "loras": [hashlib.sha256(loras[path]).hexdigest() for path in model.files]
        }
        if model.transformer is not None:
            kind = FAMILIES[spec.family].transformer_class
            weights["transformer"] = digest_of(transformer_files(model.transformer, kind))
        images = [
            ImageEntry(prompt, seed, prompt.image_name(seed))
            for prompt in spec.prompts
            if model.covers(prompt)
            for seed in prompt.seeds or spec.seeds
        ]
        for steps in spec.steps:
            key = fingerprint({**common, **weights, "steps": steps})
            folder = storage.join(spec.out, PICTURES, f"{model.name}-{steps}steps-{key}")
            sets.append(ImageSet(model, steps, folder, images, storage.names(folder)))
    return sets


def _generate(
    spec: EvaluateSpec, pool: JobPool, sets: list[ImageSet], loras: dict[str, bytes], show: Show
) -> None:
    """Draw every picture that is not there."""
    wanted = {image_set.folder: {image.name for image in image_set.images} for image_set in sets}
    total = sum(map(len, wanted.values()))
    missing = {
        image_set.folder: wanted[image_set.folder] - image_set.existing for image_set in sets
    }
    references = {path: pool.put(payload) for path, payload in loras.items()}

    def tell() -> None:
        left = sum(map(len, missing.values()))
        show("draw", f"{total - left} of {total} pictures")

    chunks: dict[Job, tuple[ImageSet, list[ImageEntry]]] = {}
    for image_set in sets:
        for chunk in image_set.chunks(spec.batch):
            if missing[image_set.folder].isdisjoint(image.name for image in chunk):
                continue
            name, steps = image_set.model.name, image_set.steps
            what = f"drawing {len(chunk)} pictures of {name} at {steps} steps"
            texts, seeds = [p.prompt.text for p in chunk], [p.seed for p in chunk]
            files = (references[path] for path in image_set.model.files)
            arguments = (image_set.model, texts, seeds, steps, *files)
            chunks[Job(what, "generate", arguments)] = (image_set, chunk)

    def keep(job: Job, images: list[bytes]) -> None:
        image_set, chunk = chunks[job]
        for image, png in zip(chunk, images, strict=True):
            if image.name in missing[image_set.folder]:
                storage.write_bytes(image_set.path(image), png)
                missing[image_set.folder].discard(image.name)
        tell()

    tell()
    pool.run(list(chunks), keep)


def _settings(spec: EvaluateSpec) -> dict[str, Any]:
    """What the results were made with, as their file holds it."""
    values = {k: v for k, v in asdict(spec).items() if not k.endswith("_seconds")}
    values["prompts"] = len(spec.prompts)
    settings: dict[str, Any] = json.loads(json.dumps(values))
    return settings
