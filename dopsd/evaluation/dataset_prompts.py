"""Prompts out of prepared shards, kept beside what they are used for: a VLM is asked once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from dopsd.config import Device
from dopsd.data.manifest import load_manifest
from dopsd.data.pictures.images import decode_image
from dopsd.data.planning.plan import RowRef
from dopsd.errors import DataError
from dopsd.evaluation.concept_prompts import (
    Concept,
    concepts_of,
    eval_prompts,
    from_templates,
    from_vlm,
    samples_of,
    write_references,
)
from dopsd.evaluation.folder import REFERENCES, owned
from dopsd.evaluation.prompts import EvalPrompt, read_prompts, write_prompts
from dopsd.evaluation.vlm import Vlm
from dopsd.files import storage
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.models.pretrained import check_config
from dopsd.ray_cluster.connect import connect, gpus_to_come
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role, uses_gpus
from dopsd.ray_cluster.process import use_device

_WHO = "prompts by VLM"
_START_SECONDS, _ANSWER_SECONDS = 900.0, 300.0
_VERSION = 1
"""Raised with the templates and questions: prompts are then made anew."""


class PromptWriter:
    """A VLM that writes a concept's prompts; the class behind the actor."""

    def __init__(self, model: str, device: str) -> None:
        use_device(device)
        self._model, self._device = model, device

    @cached_property
    def _vlm(self) -> Vlm:
        return Vlm(_WHO, self._model, self._device)

    def write(self, concept: Concept, png: bytes) -> list[str]:
        """A rewrite and new scenes of a concept that ``png`` shows. Raises as ``from_vlm``."""
        image = decode_image(png)
        return from_vlm(concept, image, lambda image, text: self._vlm.answer([image], text))


def dataset_prompts(
    shards: str,
    out: str,
    vlm: str | None,
    tell: Callable[[str], None],
    device: Device = "auto",
    each_sample: bool = False,
) -> tuple[EvalPrompt, ...]:
    """For each concept of the shards, or for ``each_sample``, one rewrite and new scenes, by
    templates or by ``vlm``, on ``device``.

    Written into ``out`` with their reference pictures, and read from there the next time. Raises
    DataError for broken shards, ConfigError for an ``out`` that is somebody else's, ModelError for
    a VLM that is not available or answers unusably.
    """
    manifest = load_manifest(shards)
    if vlm:
        check_config(_WHO, vlm)
    writer = model_identity(vlm) if vlm else "templates"
    key = fingerprint(
        [manifest.fingerprint, writer, _VERSION, *(["samples"] if each_sample else [])]
    )
    name = f"prompts-{key}.jsonl"
    path = storage.join(out, name)
    if not storage.exists(path):
        concepts = (samples_of if each_sample else concepts_of)(shards, manifest)
        owned(out).claim(name, REFERENCES)
        references = write_references(shards, concepts, storage.join(out, REFERENCES))
        if vlm:
            texts = _by_vlm(concepts, references, vlm, tell, device)
        else:
            texts = [from_templates(concept) for concept in concepts]
        write_prompts(path, eval_prompts(concepts, texts, references), verbatim=True)
    return read_prompts(path)


def _by_vlm(
    concepts: Sequence[Concept],
    references: Mapping[RowRef, str],
    vlm: str,
    tell: Callable[[str], None],
    device: Device,
) -> list[list[str]]:
    seen = {concept: _picture(concept, references) for concept in concepts}
    connect()
    gpus = 1.0 if uses_gpus(device, gpus_to_come(asked=device == "cuda")) else 0.0
    role = Role("prompt writer", 1, 1.0, gpus)
    written: dict[Concept, list[str]] = {}

    def jobs() -> Iterator[Job]:
        # One by one as the writer comes free: a picture is read only then.
        for concept in concepts:
            png = storage.read_bytes(seen[concept])
            yield Job(f"prompts of {concept.name!r}", "write", (concept, png))

    def keep(job: Job, lines: list[str]) -> None:
        written[job.arguments[0]] = lines
        tell(f"prompts: {len(written)} of {len(concepts)} asked for")

    with JobPool(
        PromptWriter,
        (vlm, role.device),
        role,
        start_s=_START_SECONDS,
        step_s=_ANSWER_SECONDS,
        restarts=1,
    ) as pool:
        pool.run(jobs(), keep)
    return [written[concept] for concept in concepts]


def _picture(concept: Concept, references: Mapping[RowRef, str]) -> str:
    """The path of a concept's first picture. Raises DataError where all its samples are texts."""
    for row in concept.images:
        if row in references:
            return references[row]
    raise DataError(
        f"--prompt-vlm: no sample of the concept {concept.name!r} has a picture to ask about, "
        "allowed: prompts by templates, which need none"
    )
