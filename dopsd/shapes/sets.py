"""Training sets as files: rendered pictures and a table of their captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd.shapes import world
from dopsd.shapes.grid import to_image
from dopsd.shapes.sprites import Sprite, sprite_captions
from dopsd.shapes.world import Scene


@dataclass(frozen=True)
class SetPicture:
    """One row of a training set. ``file``: where its picture lies, relative to the table."""

    file: str
    scene: Scene
    captions: dict[str, str]
    concept: str
    id: str


def write_set(pictures: Iterable[SetPicture], folder: Path) -> Path:
    """Render a training set of 32x32 px: PNG files and ``data.jsonl``, one row per picture.

    A row is ``{"image", "captions", "concept", "id"}`` with the image's path relative to
    ``folder``, which is made if it does not exist. The same pictures give the same bytes. Returns
    the path of ``data.jsonl``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "data.jsonl"
    with table.open("w", encoding="utf-8") as rows:
        for picture in pictures:
            (image,) = world.render([picture.scene])
            file = folder / picture.file
            file.parent.mkdir(parents=True, exist_ok=True)
            to_image(image).save(file)
            row = {
                "image": picture.file,
                "captions": picture.captions,
                "concept": picture.concept,
                "id": picture.id,
            }
            rows.write(json.dumps(row) + "\n")
    return table


def sprite_pictures(sprites: Iterable[Sprite], count: int) -> Iterator[SetPicture]:
    """``count`` training pictures of each of the sprites."""
    for sprite in sprites:
        for index, scene in enumerate(sprite.scenes(count)):
            yield SetPicture(
                f"images/{sprite.name}/{index:04d}.png",
                scene,
                sprite_captions(scene),
                sprite.name,
                f"{sprite.name}-{sprite.seed}-{index:04d}",
            )
