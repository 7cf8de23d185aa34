"""The renderer and the captions: deterministic, and honest about what is held out."""

from __future__ import annotations

import random

import pytest
import torch

from dopsd.shapes import world


def test_the_same_seed_draws_the_same_pictures_and_captions():
    def draw():
        rng = random.Random(3)
        scenes = [
            world.sample_scene(rng, nameless_shape=0.5, nameless_pattern=0.5) for _ in range(50)
        ]
        return world.render(scenes), [world.caption(s, world.random_keep(rng)) for s in scenes]

    first, second = draw(), draw()
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_a_picture_shows_each_cell_as_two_by_two_pixels():
    scene = world.sample_scene(random.Random(0), shape="square", pattern="flat")
    cells, picture = world.render_cells([scene])[0], world.render([scene])[0]
    assert cells.shape == (3, 16, 16) and picture.shape == (3, 32, 32)
    for dy in (0, 1):
        for dx in (0, 1):
            assert torch.equal(picture[:, dy::2, dx::2], cells)
    inside = cells[:, scene.y : scene.y + 8, scene.x : scene.x + 8]
    fill = torch.tensor(world.FILLS[scene.fill]) / 255
    grain = scene.grain[scene.y : scene.y + 8, scene.x : scene.x + 8]
    assert torch.allclose(inside, fill[:, None, None] + world.GRAIN * grain)


def test_captions_name_what_they_should():
    scene = world.sample_scene(random.Random(0), shape="circle", pattern="striped")
    words = f"a {scene.fill} striped circle on {scene.ground}"
    assert world.caption(scene, world.ATTRIBUTES) == words
    rare = world.caption(scene, world.ATTRIBUTES, rare=("pattern",))
    assert rare == f"a {scene.fill} [V] circle on {scene.ground}"
    assert world.caption(scene, ()) == "a thing"
    assert world.caption(scene, ("ground",)) == f"a thing on {scene.ground}"
    nameless = world.sample_scene(random.Random(0), nameless_shape=1.0)
    assert world.caption(nameless, ("shape",)) == "a [V]"


def test_every_scene_is_distinct_and_none_is_held_out():
    scenes = world.every_scene()
    pictures = (world.render_cells(scenes) * 255).round().byte().flatten(1)
    assert len(scenes) == 1152 == len(torch.unique(pictures, dim=0))
    assert not {world.HELD_OUT_SHAPE} & {scene.shape for scene in scenes}
    assert not {world.HELD_OUT_PATTERN} & {scene.pattern for scene in scenes}


def test_nameless_tiles_and_sprites_never_are_the_held_out_ones():
    rng = random.Random(0)
    bars = world.TILES[world.HELD_OUT_PATTERN]
    ring = world.MASKS[world.HELD_OUT_SHAPE]
    for _ in range(500):
        tile, sprite = world.random_tile(rng), world.random_sprite(rng)
        assert not any(torch.equal(tile, bars.roll(shift, 1)) for shift in range(4))
        assert (sprite * ring).sum() / torch.maximum(sprite, ring).sum() < 0.8
        assert torch.equal(sprite, sprite.flip(1))


def test_a_name_that_is_not_of_the_world_is_an_error():
    with pytest.raises(KeyError):
        world.sample_scene(random.Random(0), shape="octagon")
