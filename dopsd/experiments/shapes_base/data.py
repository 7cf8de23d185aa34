"""Batches for the base: text alone, and a picture beside the text."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dopsd.experiments.shapes_base import nets, vision
from dopsd.experiments.shapes_base.nets import Vae
from dopsd.experiments.shapes_base.progress import load_checkpoint, save_checkpoint
from dopsd.shapes import world
from dopsd.shapes.world import Scene

CONTEXT_POOL = 20_000
GRAINS = 16
"""Pictures of each captioned scene, which differ in their grain."""
EMPTY_SHARE = 0.1

# Of the texts without a picture, how many describe what has no name.
NAMELESS_SHARE = 0.25


@dataclass(frozen=True)
class Batch:
    """Some of each branch, text first.

    ``latents`` is [text + context, 4, 16, 16] and ``images`` [context, 3, 32, 32], the pictures
    that the context branch sees; ``answers`` is what their tokens should hold.
    """

    latents: Tensor
    texts: list[str]
    context_texts: list[str]
    images: Tensor
    answers: Tensor


class Pool:
    """All captioned scenes and many nameless ones, encoded once.

    ``cache``: where the latents of this ``vae`` are kept for the next time. ``seed`` decides the
    nameless scenes; ``size``: how many scenes the context branch has.
    """

    def __init__(self, vae: Vae, cache: Path, seed: int = 0, size: int = CONTEXT_POOL):
        rng = random.Random(seed)
        self.known = [
            replace(scene, grain=world.random_grain(rng))
            for scene in world.every_scene()
            for _ in range(GRAINS)
        ]
        self.context = [
            world.sample_scene(rng, nameless_shape=0.7, nameless_pattern=0.6) for _ in range(size)
        ]
        saved = load_checkpoint(cache)
        if saved is None:
            saved = {"known": _encode(vae, self.known), "context": _encode(vae, self.context)}
            save_checkpoint(cache, saved)
        self.nameless = [
            index
            for index, scene in enumerate(self.context)
            if scene.shape is None or scene.pattern is None
        ]
        self.known_latents: Tensor = saved["known"]
        self.context_latents: Tensor = saved["context"]

    def draw(self, rng: random.Random, text: int, context: int) -> Batch:
        """Draw a batch of ``text`` + ``context`` pairs.

        The context picture shows the target's object at a place and with a grain of its own, so
        that the branch learns what the object is and leaves both to the noise. A share of the texts
        describes nameless scenes: that is what ``[V]`` alone means.
        """
        nameless = sum(rng.random() < NAMELESS_SHARE for _ in range(text))
        rows = [rng.randrange(len(self.known)) for _ in range(text - nameless)]
        described = [rng.choice(self.nameless) for _ in range(nameless)]
        picks = [rng.randrange(len(self.context)) for _ in range(context)]
        scenes = [self.context[index] for index in picks]
        texts = [self.known[index] for index in rows]
        texts += [self.context[index] for index in described]
        latents = [self.known_latents[rows], self.context_latents[described + picks]]
        return Batch(
            latents=torch.cat(latents).float(),
            texts=[text_caption(scene, rng) for scene in texts],
            context_texts=[context_caption(scene, rng) for scene in scenes],
            images=world.render([scene.moved(rng) for scene in scenes]),
            answers=vision.answers(scenes),
        )


def _encode(vae: Vae, scenes: list[Scene]) -> Tensor:
    vae.to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(scenes), 500):
        images = world.render(scenes[start : start + 500])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = nets.encode_images(vae, images.contiguous(memory_format=torch.channels_last))
        parts.append(latents.float().half().contiguous())
    vae.to(memory_format=torch.contiguous_format)
    return torch.cat(parts)


def text_caption(scene: Scene, rng: random.Random) -> str:
    """Draw a caption for the text branch.

    ``[V]`` stands for what has no name, always and only: so the base draws something else for it
    than for a caption that leaves the attribute out, and a tuned model can tell them apart.
    """
    nameless = [name for name in ("pattern", "shape") if scene.named(name) is None]
    if not nameless and rng.random() < EMPTY_SHARE:
        return ""
    return world.caption(scene, {*world.random_keep(rng), *nameless})


def context_caption(scene: Scene, rng: random.Random) -> str:
    """Draw a caption for the context branch, with ``[V]`` often in place of pattern or shape."""
    if rng.random() < EMPTY_SHARE:
        return ""
    rare = [name for name in ("pattern", "shape") if rng.random() < 0.3]
    return world.caption(scene, world.random_keep(rng), rare)


def stratified_sigmas(count: int, shift: float = 2.0) -> Tensor:
    """Draw ``count`` noise levels in random order, one from each equal slice of the schedule."""
    even = (torch.randperm(count) + torch.rand(count)) / count
    return shift * even / (1 + (shift - 1) * even)
