"""What the effect trains on: a concept's few images, and the base's own samples beside them.

Without the latter the concept leaks into prompts that do not ask for it, under every objective:
no image of the concept shows what the rest of the world still is.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dopsd.experiments.shapes_base import fast, nets
from dopsd.experiments.shapes_card import card
from dopsd.method.off_policy import training_levels
from dopsd.records import Context
from dopsd.shapes import concepts, world

IMAGES = 12
STATES = 4
CAPTIONS = "detailed"
"""All that is not the concept is said: the teacher sees the rest of the picture too, and what no
text says could only be averaged."""


@dataclass(frozen=True)
class Batch:
    """Some samples with what each objective needs of them."""

    student: Context
    teacher: Context
    clean: Tensor
    noise: Tensor
    levels: Tensor


class Batches:
    """Training batches, the same for each objective; the first half of each is the concept's.

    ``prior``: number of different prior prompts, each with one sample of the base; 0 leaves batches
    to the concept. ``avoid``: texts that none of them may be, because they are evaluated on.
    ``captions``: one of ``concepts.CAPTION_KINDS``.
    """

    def __init__(
        self,
        model: card.Model,
        concept: str,
        seed: int,
        prior: int,
        avoid: Collection[str],
        captions: str = CAPTIONS,
    ) -> None:
        scenes = concepts.training_scenes(concept, IMAGES, seed)
        texts = [concepts.captions_of(concept, scene)[captions] for scene in scenes]
        prompts = concepts.distinct_prior_prompts(prior, seed, avoid)
        self._prior = len(prompts)
        images = world.render(scenes)
        if prompts:
            turbo = model.transformers["turbo"]
            samples = card.generate(
                model, turbo, prompts, picture=False, steps=STATES, guidance=0.0, seed=seed
            )
            texts += [prompt.text for prompt in prompts]
            images = torch.cat([images, samples])
        self.clean = nets.encode_images(model.vae, images)
        self._student, self._teacher = _encode(model, texts, None), _encode(model, texts, images)
        self._rng = random.Random(f"{concept}/{seed}/batches")
        self._generator = torch.Generator().manual_seed(seed)
        self._schedule = fast.sigmas(1000)

    def draw(self, count: int) -> Batch:
        """The next ``count`` samples."""
        own = count - count // 2 if self._prior else count
        rows = [self._rng.randrange(IMAGES) for _ in range(own)]
        rows += [IMAGES + self._rng.randrange(self._prior) for _ in range(count - own)]
        noise = torch.randn(STATES, *self.clean[rows].shape, generator=self._generator)
        uniform = torch.rand(STATES, count, generator=self._generator)
        return Batch(
            student=self._student.rows(rows),
            teacher=self._teacher.rows(rows),
            clean=self.clean[rows],
            noise=noise,
            levels=training_levels(uniform, self._schedule),
        )


@torch.no_grad()
def _encode(model: card.Model, texts: list[str], images: Tensor | None, chunk: int = 64) -> Context:
    parts = []
    for start in range(0, len(texts), chunk):
        seen = None if images is None else images[start : start + chunk]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(
                fast.Forwards().encode(model.vlm, model.tokens, texts[start : start + chunk], seen)
            )
    features, lengths = map(torch.cat, zip(*parts))
    return Context({"embeds": features, "lengths": lengths})
