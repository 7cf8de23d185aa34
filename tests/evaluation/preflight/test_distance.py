"""Distances to the target: which one `auto` is, and what each one counts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dopsd.config.outputs import PreflightSection
from dopsd.errors import DataError
from dopsd.evaluation.preflight.distance import choose_metric, latent_distance, oracle_distance
from dopsd.models import ZImage
from dopsd.models.pretrained import MissingWeights
from dopsd.shapes import world
from dopsd.shapes.grid import to_image
from tests.helpers.tiny import random_image


def choose(metric: str, targets: list[np.ndarray], model: str | None = None) -> str:
    return choose_metric(PreflightSection(metric=metric, model=model), targets)


def picture(**attributes: str) -> Image.Image:
    scene = world.sample_scene(random.Random(1), **attributes)
    return to_image(world.render([scene])[0])


def test_auto_is_the_oracle_where_it_can_read_every_target():
    targets = [np.asarray(picture()), np.asarray(picture(pattern="bars"))]
    assert choose("auto", targets) == choose("oracle", targets) == "oracle"
    assert choose("latent", targets) == "latent"
    foreign = [*targets, random_image(32, 32, 0), random_image(48, 24, 0)]
    assert choose("auto", foreign) == "latent"
    with pytest.raises(DataError, match=r"^preflight.metric: oracle, but 2 of 4 targets are no"):
        choose("oracle", foreign)


def test_a_model_that_is_not_there_is_named_before_anything_is_loaded(tmp_path):
    foreign = [random_image(48, 24, 0)]
    for metric, name in (("dino", "dino"), ("clip", "clip"), ("auto", "dino")):
        with pytest.raises(MissingWeights, match=rf"^{name}: .* has no config.json"):
            choose(metric, foreign, str(tmp_path))


def test_the_oracle_counts_the_concept_alone():
    target = picture(pattern="bars", shape="circle")
    other = picture(pattern="bars", shape="square")
    assert oracle_distance(target, [target, other, picture(pattern="flat", shape="circle")]) == [
        0.0,
        0.0,
        1.0,
    ]


def test_a_picture_that_is_none_of_the_world_shows_nothing():
    target = picture(pattern="bars", shape="circle")
    grey = Image.new("RGB", target.size, (128, 128, 128))
    faint = Image.blend(target, grey, 0.6)
    assert oracle_distance(target, [grey, faint]) == [1.0, 1.0]


def test_the_oracle_counts_every_attribute_without_a_concept():
    target = picture(pattern="flat", shape="circle")
    assert oracle_distance(target, [target, picture(pattern="flat", shape="square")]) == [0, 0.25]


def test_the_latent_distance_is_zero_at_the_target_and_grows(tiny_base):
    family = ZImage(str(tiny_base))
    vae = family.load_vae(torch.float32, "cpu")
    target = random_image(32, 48, 0).astype(np.int16)
    noise = np.random.default_rng(1).integers(-40, 41, target.shape)
    near, far = (np.clip(target + noise * f, 0, 255).astype(np.uint8) for f in (0.25, 1))
    images = [Image.fromarray(each.astype(np.uint8)) for each in (target, near, far)]
    distances = latent_distance(family, vae, images[0], images)
    assert distances[0] == 0 < distances[1] < distances[2]
