"""Diversity: how far apart the drawings of one prompt are, beside those of the base.

SFT and distillation are both known to collapse it, and no score of single pictures sees that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import product

import torch

from dopsd.data.pictures.images import decode_image
from dopsd.errors import DataError
from dopsd.evaluation.spec import EvaluatedModel, EvaluateSpec
from dopsd.evaluation.worker import EvaluationWorker
from dopsd.files import storage
from dopsd.intervals import Value, bootstrap
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.ownership.ownership import OwnedFolder
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role
from dopsd.readers import read_json
from dopsd.shapes import concepts, world
from dopsd.shapes.grid import from_image

DIVERSITY = "diversity.json"
PICTURES, PROMPTS = 16, 6
_PROMPT_SEED = 3000


def prompts() -> list[str]:
    """Some that leave open what they do not name, all known to the base."""
    drawn = concepts.distinct_prior_prompts(8 * PROMPTS, _PROMPT_SEED, ())
    open_ones = [prompt for prompt in drawn if len(prompt.named) < len(world.ATTRIBUTES) - 1]
    return [prompt.text for prompt in open_ones[:PROMPTS]]


def distance(pictures: Sequence[bytes]) -> float:
    """Mean RMSE of all pairs, over pixels in [0, 1], of PNGs of the shapes world."""
    rows = torch.stack([from_image(decode_image(png)).flatten() for png in pictures]).double()
    apart = torch.pdist(rows) / rows.shape[1] ** 0.5
    return float(apart.mean())


def diversity(
    spec: EvaluateSpec, own: OwnedFolder, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """{model: its distance at each of :func:`prompts`} of the models of a resolved ``spec``.

    Drawn by ``spec.workers`` from noise that all models share. What was measured of equal weights
    before stays in ``diversity.json`` of ``own`` and is not drawn again.
    """
    texts = prompts()
    path = own.file(DIVERSITY)
    known: dict[str, list[float]] = {}
    if storage.exists(path):
        known = read_json(path, dict[str, list[float]], DataError, where=path)
    payloads = {m.name: [storage.read_bytes(file) for file in m.files] for m in spec.models}
    making = [model_identity(spec.base, spec.revision), texts, PICTURES, spec.steps, spec.dtype]
    keys = {
        name: fingerprint([*making, *(hashlib.sha256(part).hexdigest() for part in parts)])
        for name, parts in payloads.items()
    }
    jobs: dict[Job, EvaluatedModel] = {}
    asked, seeds = zip(*product(texts, range(PICTURES)))
    for model in spec.models:
        if keys[model.name] not in known:
            arguments = (model, list(asked), list(seeds), spec.steps[0], *payloads[model.name])
            jobs[Job(f"drawing {len(asked)} pictures of {model.name}", "generate", arguments)] = (
                model
            )

    def keep(job: Job, pictures: list[bytes]) -> None:
        groups = [pictures[start : start + PICTURES] for start in range(0, len(asked), PICTURES)]
        known[keys[jobs[job].name]] = [distance(group) for group in groups]
        own.write(DIVERSITY, json.dumps(known).encode())
        tell(f"{sum(key in known for key in keys.values())} of {len(keys)} models")

    if jobs:
        with JobPool(
            EvaluationWorker,
            (spec, spec.device),
            Role("diversity", spec.workers, spec.cpus, 0.0),
            start_s=spec.start_seconds,
            step_s=spec.step_seconds,
            restarts=spec.restarts,
        ) as pool:
            pool.run(list(jobs), keep)
    return {name: known[key] for name, key in keys.items()}


def relative(ours: Sequence[float], base: Sequence[float]) -> Value:
    """A model's mean distance over the base's, with its interval over prompts."""

    def ratio(pairs: Sequence[tuple[float, float]]) -> float:
        below = sum(theirs for _, theirs in pairs)
        return sum(own for own, _ in pairs) / below if below else float("inf")

    pairs = list(zip(ours, base, strict=True))
    return Value(ratio(pairs), *bootstrap(pairs, ratio))
