"""The oracle: exact on what the renderer draws, near chance on noise."""

from __future__ import annotations

import random

import pytest
import torch

from dopsd.intervals import bootstrap, mean, wilson
from dopsd.shapes import oracle, world


def rates(readings, scenes):
    """How often each attribute is read off right."""
    pairs = list(zip(readings, scenes, strict=True))
    return {name: mean([r.matches(s, (name,)) for r, s in pairs]) for name in world.ATTRIBUTES}


@pytest.mark.parametrize(
    "choice", [{}, {"shape": "ring"}, {"pattern": "bars"}, {"shape": "ring", "pattern": "bars"}]
)
@pytest.mark.parametrize("disturbance", [0.0, 0.03])
def test_own_renderings_score_99_percent(choice, disturbance):
    rng = random.Random(0)
    scenes = [world.sample_scene(rng, **choice) for _ in range(400)]
    images = world.render(scenes)
    images = images + disturbance * torch.randn_like(images)
    readings = oracle.read(images)
    assert all(rate >= 0.99 for rate in rates(readings, scenes).values())
    whole = [r.valid and r.matches(s, world.ATTRIBUTES) for r, s in zip(readings, scenes)]
    assert mean(whole) >= 0.99
    places = [(r.x, r.y) == (s.x, s.y) for r, s in zip(readings, scenes, strict=True)]
    assert mean(places) >= 0.99


def test_noise_scores_near_chance():
    rng = random.Random(0)
    scenes = [world.sample_scene(rng) for _ in range(600)]
    images = torch.rand(600, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    readings = oracle.read(images)
    chance = {"fill": 1 / 6, "pattern": 1 / 3, "shape": 1 / 4, "ground": 1 / 4}
    for name, rate in rates(readings, scenes).items():
        assert abs(rate - chance[name]) < 0.12, name
    assert not any(reading.valid for reading in readings)
    assert mean([reading.palette_error for reading in readings]) > 0.1


def test_wrong_captions_lower_exactly_their_attribute():
    rng = random.Random(0)
    scenes = [world.sample_scene(rng, shape="circle") for _ in range(50)]
    others = [world.sample_scene(rng, shape="square") for _ in range(50)]
    readings = oracle.read(world.render(scenes))
    assert rates(readings, others)["shape"] == 0 and rates(readings, scenes)["shape"] == 1
    assert all(reading.valid for reading in readings)


def test_blur_raises_the_palette_error():
    scenes = [world.sample_scene(random.Random(i)) for i in range(50)]
    images = world.render(scenes)
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    sharp = mean([r.palette_error for r in oracle.read(images)])
    soft = mean([r.palette_error for r in oracle.read(blurred)])
    assert sharp < 1e-3 and soft > 0.05


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 3, 32, 32\]"):
        oracle.read(torch.zeros(1, 3, 64, 64))


def test_intervals_cover_the_known_cases():
    low, high = wilson(95, 100)
    assert low == pytest.approx(0.8882, abs=1e-3) and high == pytest.approx(0.9785, abs=1e-3)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = bootstrap([float(i % 10) for i in range(200)])
    assert low < 4.5 < high and high - low < 1.0
