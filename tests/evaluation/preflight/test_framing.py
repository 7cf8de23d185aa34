"""Zoom of a picture against its target: constructed pictures whose zoom is known."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from PIL import Image

from dopsd.evaluation.preflight.framing import Framing, framing, judge_framing
from dopsd.shapes import world
from dopsd.shapes.grid import to_image


def photo(seed: int, height: int = 96, width: int = 128) -> Image.Image:
    """Noise with the spectrum of photos, coloured."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    spectrum = np.fft.fft2(rng.normal(size=(3, height, width)))
    pixels = np.fft.ifft2(spectrum / (np.hypot(rows, columns) + 0.01) ** 1.2).real
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def zoomed(image: Image.Image, zoom: float, right: float = 0.0, down: float = 0.0) -> Image.Image:
    """Moved by shares of its size, then enlarged about the middle; grey where nothing is left."""
    width, height = image.size
    x, y = (0.5 + right) * width, (0.5 + down) * height
    box = (1 / zoom, 0, x - width / zoom / 2, 0, 1 / zoom, y - height / zoom / 2)
    return image.transform(
        image.size, Image.Transform.AFFINE, box, Image.Resampling.BICUBIC, fillcolor=(128,) * 3
    )


def redrawn(image: Image.Image, seed: int = 0) -> Image.Image:
    """In other light and with noise of its own."""
    pixels = np.asarray(image, dtype=float)
    noise = np.random.default_rng(seed).normal(0, 15, pixels.shape)
    light = np.linspace(-40, 40, pixels.shape[1])[:, None]
    return Image.fromarray((0.8 * pixels + light + noise + 20).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("zoom", [0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 1.8])
def test_a_zoomed_copy_has_the_right_factor(zoom):
    target = photo(0)
    found = framing(target, redrawn(zoomed(target, zoom)))
    assert found.told and found.zoom == pytest.approx(zoom, abs=0.02)
    if zoom != 1:
        assert found.match > found.unscaled + 0.2


def test_a_moved_copy_is_not_zoomed():
    target = photo(1, 128, 96)
    assert framing(target, target) == Framing(1.0, pytest.approx(1), pytest.approx(1))
    moved = framing(target, zoomed(target, 1.3, 0.1, -0.08))
    assert moved.told and moved.zoom == pytest.approx(1.3, abs=0.02)
    assert framing(target, zoomed(target, 1, 0.05, 0.05)).zoom == pytest.approx(1, abs=0.05)


def test_a_subject_in_another_corner_is_not_zoomed():
    """As teachers of the shapes world draw it: the same, elsewhere on the same ground."""
    subject = np.asarray(photo(3, 32, 32))
    corners = []
    for top, left in ((0, 0), (0, 32), (32, 32)):
        pixels = np.full((64, 64, 3), 90, np.uint8)
        pixels[top : top + 32, left : left + 32] = subject
        corners.append(Image.fromarray(pixels))
    for image in corners:
        found = framing(corners[0], image)
        assert found.told and found.zoom == pytest.approx(1, abs=0.02)


def test_other_pictures_tell_nothing():
    found = [framing(photo(seed), photo(seed + 100)) for seed in range(8)]
    assert not any(each.told for each in found)
    assert judge_framing([[each] for each in found]).outcome == "untold"


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128)])
def test_pictures_of_nothing_tell_nothing(colour):
    plain = Image.new("RGB", (64, 64), colour)
    for pair in ((plain, photo(0, 64, 64)), (photo(0, 64, 64), plain), (plain, plain)):
        assert not framing(*pair).told
    assert framing(Image.new("RGB", (8, 64)), Image.new("RGB", (8, 64))) is None


def test_the_shapes_worlds_small_pictures_have_a_framing():
    for seed in range(4):
        target = to_image(world.render([world.sample_scene(random.Random(seed))])[0])
        assert framing(target, target).zoom == 1
        assert framing(target, zoomed(target, 1.25)).zoom == pytest.approx(1.25, abs=0.04)


def test_unlike_scenes_of_the_shapes_world_are_not_called_zoomed():
    scenes = [world.sample_scene(random.Random(seed)) for seed in range(31)]
    images = [to_image(image) for image in world.render(scenes)]
    found = [framing(target, image) for target, image in zip(images, images[1:])]
    assert np.mean([each.told and each.zoom != 1 for each in found]) < 0.1
    assert judge_framing([[each] for each in found]).outcome == "untold"


def judged(*zooms: float, told: int | None = None):
    """Each sample by two noises, a little apart; the first ``told`` show their target."""
    told = len(zooms) if told is None else told
    return judge_framing(
        [
            [Framing(zoom * f, 0.9 if n < told else 0.2, 0.1) for f in (0.99, 1.01)]
            for n, zoom in enumerate(zooms)
        ]
    )


def test_a_teacher_that_zooms_is_one_clear_line():
    verdict = judged(1.3, 1.28, 1.35, 1.31, 1.0, told=4)
    assert verdict.outcome == "zooms_in" and verdict.zooms
    assert verdict.sentence() == (
        f"the teacher zooms IN: it draws the target 1.31 [{verdict.low:.2f}, {verdict.high:.2f}] "
        "times as large (4 of 5 samples), which the student will learn too"
    )
    assert "zooms OUT" in judged(0.7, 0.72, 0.69).sentence()


def test_a_teacher_that_keeps_the_framing_is_not_warned_of():
    for zooms in ((1.0, 1.0, 1.0), (1.03, 1.02, 1.03)):
        assert judged(*zooms).outcome == "kept"
    mixed = judged(0.8, 1.3, 1.0, 1.1)
    assert mixed.outcome == "unclear" and not mixed.zooms and "look at the" in mixed.sentence()
    assert judged(1.0, 1.0).sentence().startswith("the teacher keeps that of the target: zoom 1.00")


def test_few_pictures_of_the_target_are_not_judged():
    verdict = judged(1.5, 1.5, 1.5, told=1)
    assert verdict.outcome == "untold" and "(1 of 3 samples)" in verdict.sentence()
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)
    assert judge_framing([[None, None]]).outcome == "untold"
