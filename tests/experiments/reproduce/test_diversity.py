"""How far drawings of one prompt are apart."""

from __future__ import annotations

import random

import pytest

from dopsd.data.pictures.images import encode_png
from dopsd.experiments.reproduce.diversity import PROMPTS, distance, prompts, relative
from dopsd.shapes import world
from dopsd.shapes.grid import to_image


def test_equal_pictures_have_no_distance_and_a_lone_one_is_in_two_of_three_pairs():
    scenes = [world.sample_scene(random.Random(number)) for number in range(2)]
    one, other = (encode_png(to_image(picture)) for picture in world.render(scenes))
    assert distance([one, one, one]) == 0 < distance([one, other])
    assert distance([one, one, other]) == pytest.approx(distance([one, other]) * 2 / 3)


def test_prompts_differ_and_leave_things_open():
    texts = prompts()
    assert len(set(texts)) == len(texts) == PROMPTS and not any("[V]" in text for text in texts)


def test_a_model_that_collapsed_has_a_small_share_of_the_bases():
    value = relative([0.1, 0.1, 0.1], [0.2, 0.4, 0.4])
    assert value.value == pytest.approx(0.3) and value.low <= 0.3 <= value.high
