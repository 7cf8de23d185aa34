"""The grain of the shapes world: free, unnamed, inside the palette, and read off by the oracle."""

from __future__ import annotations

import random
from statistics import mean

import torch
from torch.nn import functional as F

from dopsd.shapes import oracle, world


def scenes(count: int = 100, **choice: object) -> list[world.Scene]:
    rng = random.Random(5)
    return [world.sample_scene(rng, **choice) for _ in range(count)]  # type: ignore[arg-type]


def test_cells_are_free_and_no_colour_is_cut_off() -> None:
    drawn = torch.stack([world.random_grain(random.Random(seed)) for seed in range(400)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert drawn.mean(0).abs().max() < 0.25 and abs(float(drawn.mean())) < 0.01
    assert abs(float((drawn[:, :, 1:] * drawn[:, :, :-1]).mean())) < 0.01
    for sign in (-1, 1):
        for colours in (world.FILL_RGB, world.GROUND_RGB, world.INK_RGB):
            lit = colours + sign * world.GRAIN
            assert lit.min() >= 0 and lit.max() <= 1


def test_another_picture_of_an_object_has_another_grain() -> None:
    (scene,) = scenes(1)
    moved = scene.moved(random.Random(6))
    assert torch.equal(moved.mask, scene.mask) and moved.fill == scene.fill
    assert moved.grain is not None and not torch.equal(moved.grain, scene.grain)
    assert world.caption(scene, world.ATTRIBUTES) == world.caption(scene.plain(), world.ATTRIBUTES)


def test_the_oracle_reads_the_grain_off_any_legal_scene() -> None:
    for choice in ({}, {"shape": "ring"}, {"pattern": "bars"}):
        for reading in oracle.read(world.render(scenes(**choice))):
            assert abs(reading.contrast - 1) < 1e-4 and reading.crisp == 1.0
            assert abs(reading.correlation) < 0.25
            assert reading.palette_error < 1e-6 and reading.rmse < 1e-6


def test_what_draws_the_mean_draws_none() -> None:
    plain = [scene.plain() for scene in scenes()]
    for reading in oracle.read(world.render(plain)):
        assert reading.contrast < 1e-4 and reading.crisp == 0.0 and reading.valid


def test_contrast_falls_with_blur_and_halves_with_half_of_the_grain() -> None:
    drawn = scenes()
    half = 0.5 * (world.render(drawn) + world.render([scene.plain() for scene in drawn]))
    readings = oracle.read(half)
    assert abs(mean(reading.contrast for reading in readings) - 0.5) < 1e-3
    assert mean(reading.crisp for reading in readings) == 0.0
    soft = oracle.read(F.avg_pool2d(world.render(drawn), 5, 1, 2))
    assert mean(reading.crisp for reading in soft) < 0.3
    assert mean(reading.correlation for reading in soft) > 0.2


def test_another_scene_than_asked_for_costs_no_grain() -> None:
    """Leakage is counted by the attributes; the grain is of the scene that was drawn."""
    (reading,) = oracle.read(world.render(scenes(1, shape="ring", pattern="bars")))
    assert reading.contrast > 0.99 and not reading.matches(scenes(1, shape="square")[0], ["shape"])
