"""Held-out prompts out of a data set: for each concept one rewrite and four new scenes.

By templates, or by a VLM that sees a picture of the concept. The paper makes them for each sample.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from dopsd.data.manifest import Manifest
from dopsd.data.planning.plan import RowRef
from dopsd.data.read import ReadSpec, RowGroups
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.files import storage

TOKEN = "[V]"
SCENES = 4
REFERENCES = 4
"""Pictures of a concept, at most, that its drawn pictures are held against."""
_REWRITE = "a picture that shows the following: {caption}"
_SCENES = (
    "{subject} on a beach at sunset",
    "{subject} in a snowy forest",
    "{subject} on a wooden table beside a window",
    "{subject} in a busy city street at night",
    "{subject} in front of a plain white wall",
    "{subject} in a field of flowers",
    "{subject} on the moon, with the earth in the sky",
    "{subject} in an old library",
    "{subject} under water, lit from above",
    "a close-up of {subject} in soft morning light",
    "a watercolor painting of {subject}",
    "{subject} seen from above on green grass",
)


@dataclass(frozen=True)
class Concept:
    """What the data set says of a concept: its name, one caption, where some pictures are."""

    name: str
    caption: str
    images: tuple[RowRef, ...]
    number: int = 0
    """Among several of one name, as samples are."""

    @property
    def subject(self) -> str:
        """How a prompt names it: the rare token with the concept's name, or the name alone."""
        if TOKEN not in self.caption:
            return self.name
        named = re.search(rf"{re.escape(TOKEN)} {re.escape(self.name)}\b", self.caption)
        return f"{TOKEN} {self.name}" if self.name and named else TOKEN


def concepts_of(shards: str, manifest: Manifest) -> list[Concept]:
    """Every concept of prepared shards, by name, with its first samples that have a picture; none
    is decoded.

    Raises ConfigError when a concept can be named by nothing, DataError for a broken shard.
    """
    texts = RowGroups(shards, ReadSpec(images=False))
    first_rows = _first_rows(manifest)
    # In the order of the shards, so that concepts of one row group share its reading.
    captions = {name: texts.row(rows[0])["captions"] for name, rows in first_rows.items()}
    return [
        _named(
            shards,
            name,
            captions[name][min(captions[name])],
            _pictured(shards, manifest, name, rows),
        )
        for name, rows in sorted(first_rows.items())
    ]


def _pictured(
    shards: str, manifest: Manifest, concept: str, rows: Sequence[RowRef]
) -> tuple[RowRef, ...]:
    """The first REFERENCES of a concept's rows that have a picture."""
    texts = manifest.without_picture.get(concept)
    if texts is None:
        return tuple(rows[:REFERENCES])
    if texts.samples == manifest.concepts[concept]:
        return ()
    groups = RowGroups(shards, capacity=0)
    return tuple(islice((r for r in rows if groups.row(r)["image"] is not None), REFERENCES))


def samples_of(shards: str, manifest: Manifest) -> list[Concept]:
    """Every sample of prepared shards as a concept of its own, under its concept's name.

    Raises as :func:`concepts_of`.
    """
    texts = RowGroups(shards, ReadSpec(images=False))
    samples: list[Concept] = []
    for group in manifest.row_groups:
        for row in range(group.rows):
            ref = RowRef(group.file, group.row_group, row)
            found = texts.row(ref)
            caption = found["captions"][min(found["captions"])]
            samples.append(_named(shards, found["concept"] or "", caption, (ref,), len(samples)))
    return samples


def _named(
    shards: str, name: str, caption: str, images: tuple[RowRef, ...], number: int = 0
) -> Concept:
    concept = Concept(name, caption, images, number)
    if not concept.subject:
        raise ConfigError(
            f"prompts {shards}: {caption[:60]!r} has neither a concept nor {TOKEN}, so no new "
            "scene can name it; allowed: a file of prompts"
        )
    return concept


def _first_rows(manifest: Manifest) -> dict[str, list[RowRef]]:
    """Where the first samples of each concept are, or all where some may have no picture."""
    first_rows: dict[str, list[RowRef]] = {}
    for group in manifest.row_groups:
        names = (name for name, count in group.concepts for _ in range(count))
        for row, name in enumerate(names):
            rows = first_rows.setdefault(name, [])
            if len(rows) < REFERENCES or name in manifest.without_picture:
                rows.append(RowRef(group.file, group.row_group, row))
    return first_rows


def write_references(shards: str, concepts: Sequence[Concept], folder: str) -> dict[RowRef, str]:
    """Write the concepts' pictures into ``folder`` by content; returns the path of each. Samples
    without a picture have none.

    Each row group is read once, and one at a time is in memory. Raises DataError for a broken
    shard.
    """
    groups = RowGroups(shards, capacity=0)
    paths = {}
    for row in sorted(row for concept in concepts for row in concept.images):
        if (image := groups.row(row)["image"]) is None:
            continue
        name = f"{hashlib.sha256(image).hexdigest()[:16]}.png"
        paths[row] = storage.join(folder, name)
        if not storage.exists(paths[row]):
            storage.write_bytes(paths[row], image)
    return paths


def from_templates(concept: Concept) -> list[str]:
    """One rewrite of the caption, then SCENES new scenes that depend on the name alone."""
    scenes = random.Random(f"{concept.name}/scenes/{concept.number}").sample(_SCENES, SCENES)
    rewrite = _REWRITE.format(caption=concept.caption)
    return [rewrite, *(scene.format(subject=concept.subject) for scene in scenes)]


def from_vlm(
    concept: Concept, image: Image.Image, ask: Callable[[Image.Image, str], str]
) -> list[str]:
    """The same by a VLM: ``ask`` gives its answer to a question about a picture. Raises ModelError
    when it holds too few usable prompts."""
    subject = concept.subject
    rewrite = ask(
        image,
        "Say this caption of the picture in other words, in one line, and keep the name "
        f"{subject!r} as it is: {concept.caption}",
    )
    scenes = ask(
        image,
        f"Write {SCENES} short captions that place {subject!r}, the subject of the picture, in "
        f"new scenes. One line each, no numbering, each with the name {subject!r} as it is.",
    )
    prompts = [*_usable(rewrite, subject)[:1], *_usable(scenes, subject)[:SCENES]]
    if len(prompts) != 1 + SCENES:
        raise ModelError(
            f"prompts by VLM: {len(prompts)} of {1 + SCENES} lines for the concept "
            f"{concept.name!r} name {subject!r}; allowed: another VLM, or templates"
        )
    return prompts


def _usable(answer: str, subject: str) -> list[str]:
    lines = [re.sub(r"^\s*(\d+[.)]|[-*])\s+", "", line).strip() for line in answer.splitlines()]
    return [line.strip('"') for line in lines if subject in line]


def eval_prompts(
    concepts: Sequence[Concept], texts: Sequence[Sequence[str]], references: Mapping[RowRef, str]
) -> tuple[EvalPrompt, ...]:
    """Prompts with ``references``, the path of each of the concepts' pictures. A prompt that
    samples share is drawn once and held against the pictures of all of them."""
    shown: dict[tuple[str, str], dict[str, None]] = {}
    for concept, lines in zip(concepts, texts, strict=True):
        for text in lines:
            paths = shown.setdefault((concept.name or "images", text), {})
            paths |= dict.fromkeys(references[row] for row in concept.images if row in references)
    return tuple(
        EvalPrompt(text, group, references=tuple(paths)) for (group, text), paths in shown.items()
    )
