"""Concepts that the base has no word for, as small training sets, and prompts to evaluate with.

``bars`` is a pattern and ``ring`` a shape. In every caption the rare token ``[V]`` stands where the
concept's name would stand.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dopsd.shapes import world
from dopsd.shapes.sets import SetPicture, write_set
from dopsd.shapes.world import Scene

# Which attribute each concept is a value of.
CONCEPTS = {world.HELD_OUT_PATTERN: "pattern", world.HELD_OUT_SHAPE: "shape"}


# What each kind of caption names, besides the concept itself.
CAPTION_KINDS = {
    "short": (),
    "medium": ("fill", "pattern", "shape"),
    "detailed": ("fill", "pattern", "shape", "ground"),
    "user_prompt": ("shape", "ground"),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt to evaluate with: its text, what it asks for, and the attributes it names.

    For a prompt with ``[V]`` the concept's attribute counts as named and ``scene`` holds the
    concept's value, so that the oracle counts the concept.
    """

    text: str
    scene: Scene
    named: tuple[str, ...]


def concept_scene(name: str, rng: random.Random) -> Scene:
    """Draw a scene that shows the concept."""
    if CONCEPTS[name] == "pattern":
        return world.sample_scene(rng, pattern=name)
    return world.sample_scene(rng, shape=name)


def concept_caption(name: str, scene: Scene, keep: Collection[str]) -> str:
    """Describe a scene of the concept, with ``[V]`` for the concept itself."""
    attribute = CONCEPTS[name]
    return world.caption(scene, {*keep, attribute}, rare=(attribute,))


def captions_of(name: str, scene: Scene) -> dict[str, str]:
    """Return the captions of one training image under the keys that ``dopsd`` draws from."""
    return {kind: concept_caption(name, scene, keep) for kind, keep in CAPTION_KINDS.items()}


def training_scenes(name: str, count: int, seed: int) -> list[Scene]:
    """Draw the scenes of a training set."""
    rng = random.Random(f"{name}/{seed}")
    return [concept_scene(name, rng) for _ in range(count)]


def training_captions(name: str, count: int, seed: int, kind: str) -> set[str]:
    """The captions of one of ``CAPTION_KINDS`` in a training set."""
    return {captions_of(name, scene)[kind] for scene in training_scenes(name, count, seed)}


def write_concept_set(name: str, folder: Path, count: int, seed: int) -> Path:
    """Render a training set: ``images/*.png`` (32x32) and ``data.jsonl``, one row per image.

    A row is ``{"image", "captions": {short, medium, detailed, user_prompt}, "concept", "id"}``
    with the image's path relative to ``folder``. The same arguments give the same bytes.

    ``folder`` is made if it does not exist; ``seed`` decides the scenes. Returns the path of
    ``data.jsonl``.
    """
    pictures = (
        SetPicture(
            f"images/{index:04d}.png",
            scene,
            captions_of(name, scene),
            name,
            f"{name}-{seed}-{index:04d}",
        )
        for index, scene in enumerate(training_scenes(name, count, seed))
    )
    return write_set(pictures, folder)


def prior_prompts(count: int, seed: int) -> list[Prompt]:
    """Draw prompts about what the base knows, half of them full and half partial.

    What a tuned model draws for them tells whether it still is the base.
    """
    rng = random.Random(f"prior/{seed}")
    prompts = []
    for index in range(count):
        scene = world.sample_scene(rng)
        named = world.ATTRIBUTES if index % 2 == 0 else partial_keep(rng)
        prompts.append(Prompt(world.caption(scene, named), scene, tuple(named)))
    return prompts


def distinct_prior_prompts(count: int, seed: int, avoid: Collection[str]) -> list[Prompt]:
    """``count`` different prompts about what the base knows, none of their texts in ``avoid``."""
    drawn = prior_prompts(16 * count, seed)
    prompts = {prompt.text: prompt for prompt in drawn if prompt.text not in avoid}
    return list(prompts.values())[:count]


def concept_prompts(name: str, count: int, seed: int) -> list[Prompt]:
    """Draw prompts that ask for the concept as ``[V]`` in new combinations."""
    rng = random.Random(f"{name}/prompts/{seed}")
    kinds = list(CAPTION_KINDS.values())
    prompts = []
    for index in range(count):
        scene = concept_scene(name, rng)
        keep = {*kinds[index % len(kinds)], CONCEPTS[name]}
        named = tuple(attribute for attribute in world.ATTRIBUTES if attribute in keep)
        prompts.append(Prompt(concept_caption(name, scene, named), scene, named))
    return prompts


def partial_keep(rng: random.Random) -> tuple[str, ...]:
    """Draw one to three of the attributes, each with probability one half."""
    while True:
        keep = tuple(name for name in world.ATTRIBUTES if rng.random() < 0.5)
        if 0 < len(keep) < len(world.ATTRIBUTES):
            return keep
