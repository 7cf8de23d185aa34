"""How far pictures are from a target: what the preflight compares student and teacher by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dopsd.config.outputs import PreflightSection
from dopsd.errors import DataError
from dopsd.evaluation.metrics import make_distance
from dopsd.models.families.family import Family
from dopsd.shapes import oracle, world
from dopsd.shapes.grid import from_image

Distance = Callable[[Image.Image, list[Image.Image]], list[float]]
"""(target, pictures of the same size) -> the distance of each picture, 0 or more."""


def choose_metric(asked: PreflightSection, targets: list[np.ndarray]) -> str:
    """The metric's name, `auto` resolved with these targets, uint8 [H, W, 3] each.

    Raises DataError when the oracle is asked for and one of the targets is none of its world,
    MissingWeights when a model is not available.
    """
    name = asked.metric
    if name in ("auto", "oracle"):
        foreign = sum(not _of_the_shapes_world(target) for target in targets)
        if not foreign:
            return "oracle"
        if name == "oracle":
            raise DataError(
                f"preflight.metric: oracle, but {foreign} of {len(targets)} targets are no "
                "pictures of the shapes world; allowed: latent, dino or clip"
            )
        name = "latent" if asked.model is None else "dino"
    if name != "latent":
        make_distance(name, asked.model).check()
    return name


def load_distance(
    name: str, model: str | None, family: Family, pipeline: Any, device: str
) -> Distance:
    """The distance of that name. ``model``: of `dino` and `clip`; ``pipeline``: whose VAE `latent`
    takes, which is loaded already, at the run's own revision and dtype."""
    if name == "oracle":
        return oracle_distance
    if name == "latent":
        return lambda target, images: latent_distance(family, pipeline.vae, target, images)
    metric = make_distance(name, model, device)
    metric.load()
    return lambda target, images: metric.distance(images, [target] * len(images))


def _of_the_shapes_world(target: np.ndarray) -> bool:
    if target.shape != (world.PIXELS, world.PIXELS, 3):
        return False
    (reading,) = oracle.read(from_image(Image.fromarray(target))[None])
    return reading.valid


def oracle_distance(target: Image.Image, images: list[Image.Image]) -> list[float]:
    """The share of the target's attributes that a picture has wrong, by the shapes world's oracle.

    Of a target with an attribute that no caption of the base's training names (a concept to
    teach), that attribute alone counts: the others are in the prompt, or free. A picture that is
    none of this world (a nameless tile, say) has everything wrong, whatever it comes nearest to.
    """
    goal, *readings = oracle.read(torch.stack([from_image(image) for image in (target, *images)]))
    held_out = (world.HELD_OUT_PATTERN, world.HELD_OUT_SHAPE)
    names = [name for name in world.ATTRIBUTES if getattr(goal, name) in held_out]
    names = names or list(world.ATTRIBUTES)
    return [
        sum(not reading.valid or getattr(reading, name) != getattr(goal, name) for name in names)
        / len(names)
        for reading in readings
    ]


def latent_distance(
    family: Family, vae: Any, target: Image.Image, images: list[Image.Image]
) -> list[float]:
    """RMS difference of VAE latents. Layout counts: the same object elsewhere is far away."""

    def encode(image: Image.Image) -> Tensor:
        return family.encode_images(vae, [np.asarray(image)])

    goal = encode(target)
    return [float((encode(image) - goal).square().mean().sqrt()) for image in images]
