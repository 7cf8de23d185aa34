"""Sprites: a concept is its seed and number alone, and the oracle counts its cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dopsd.shapes import world
from dopsd.shapes.sets import sprite_pictures, write_set
from dopsd.shapes.sprite_oracle import read_sprite
from dopsd.shapes.sprites import CAPTION_KINDS, Sprite, sprite_captions, sprites

COUNT = 24


def written(folder: Path, sprites, pictures: int) -> dict[str, bytes]:
    """Each concept's row of text and its pictures, by their names."""
    table = write_set(sprite_pictures(sprites, pictures), folder)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return {
        row["id"]: json.dumps(row).encode() + (folder / row["image"]).read_bytes() for row in rows
    }


def test_more_concepts_and_more_pictures_change_none(tmp_path: Path) -> None:
    few = written(tmp_path / "few", sprites(7, 3), 2)
    more = written(tmp_path / "more", sprites(7, 5), 4)
    alone = written(tmp_path / "alone", [Sprite.named(7, "sprite-0002")], 2)
    other = written(tmp_path / "other", sprites(8, 3), 2)
    assert len(few) == 6 and len(more) == 20
    assert few.items() <= more.items()
    assert alone == {name: row for name, row in few.items() if name.startswith("sprite-0002-")}
    assert not few.items() & other.items()


def test_a_row_names_what_may_vary_and_never_the_sprite(tmp_path: Path) -> None:
    (sprite,) = sprites(0, 1)
    table = write_set(sprite_pictures([sprite], 4), tmp_path)
    for line, scene in zip(table.read_text().splitlines(), sprite.scenes(4), strict=True):
        row = json.loads(line)
        assert row["concept"] == "sprite-0000" and row["captions"] == sprite_captions(scene)
        assert row["captions"].keys() == CAPTION_KINDS.keys()
        assert row["captions"]["detailed"] == f"a {scene.fill} [V] [V] on {scene.ground}"
        assert row["captions"]["short"] == "a [V] [V]"
    assert len({scene.fill for scene in sprite.scenes(20)}) > 2


def test_names_are_numbers() -> None:
    for number in (0, 37, 9_999, 10_000, 123_456):
        sprite = Sprite.of(1, number)
        again = Sprite.named(1, sprite.name)
        assert again.number == number and torch.equal(again.mask, sprite.mask)
    for name in ("sprite-1", "sprite-00001", "sprite-٠٠٠١", "rex", "sprite-0001\n"):
        with pytest.raises(KeyError):
            Sprite.named(1, name)


def test_the_oracle_knows_a_sprite_from_all_others() -> None:
    concepts = list(sprites(0, COUNT))
    images = [world.render(list(sprite.scenes(4))) for sprite in concepts]
    for number, sprite in enumerate(concepts):
        for other, drawn in enumerate(images):
            readings = read_sprite(drawn, sprite)
            assert {reading.shows for reading in readings} == {number == other}
            if number == other:
                for reading, scene in zip(readings, sprite.scenes(4), strict=True):
                    assert (reading.cells, reading.fill, reading.ground) == (
                        1.0,
                        scene.fill,
                        scene.ground,
                    )
                    assert (reading.x, reading.y) == (scene.x, scene.y)


def test_every_wrong_cell_counts() -> None:
    (sprite,) = sprites(3, 1)
    (scene,) = sprite.scenes(1)
    own = int(sprite.mask.sum())
    cells = world.render_cells([scene])[0]
    free = world.Scene.plain(scene)
    stray = cells.clone()
    x, y = (free.x + world.OBJECT) % world.CELLS, (free.y + world.OBJECT) % world.CELLS
    stray[:, y, x] = world.INK_RGB
    missing = cells.clone()
    row, column = (int(index) for index in sprite.mask.nonzero()[0])
    missing[:, scene.y + row, scene.x + column] = cells[:, y, x]
    recoloured = cells.clone()
    others = [rgb for name, rgb in zip(world.FILLS, world.FILL_RGB) if name != scene.fill]
    recoloured[:, scene.y + row, scene.x + column] = others[0]
    blank = cells[:, y, x][:, None, None].expand(3, world.CELLS, world.CELLS)
    pictures = world.show(torch.stack([cells, stray, missing, recoloured, blank]))
    seen = [reading.cells for reading in read_sprite(pictures, sprite)]
    expected = [1, own / (own + 1), (own - 1) / own, (own - 1) / own, 0]
    assert seen == pytest.approx(expected)
    noise = torch.rand(8, 3, world.PIXELS, world.PIXELS, generator=torch.Generator().manual_seed(0))
    assert not any(reading.shows for reading in read_sprite(noise, sprite))


def test_one_sprite_is_not_taken_for_another() -> None:
    one, two = sprites(0, 2)
    drawn = world.render([*one.scenes(3), *two.scenes(1)])
    assert [reading.shows for reading in read_sprite(drawn, one)] == [True, True, True, False]
    with pytest.raises(ValueError, match=r"\[N, 3, 32, 32\]"):
        read_sprite(torch.zeros(1, 3, 64, 64), one)
