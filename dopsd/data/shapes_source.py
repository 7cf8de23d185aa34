"""The source `shapes:...`: concepts of the embedded tiny world, drawn when a run prepares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.data.sources.listed import Listed
from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from dopsd.shapes.sprites import Sprite

SHAPES = "shapes:"
_SPRITES = re.compile(r"sprites#(0|[1-9][0-9]{0,17})")


def sprites_seed(source: str) -> int | None:
    """SEED of `shapes:sprites#SEED`; None for another source."""
    match = _SPRITES.fullmatch(source.removeprefix(SHAPES)) if source.startswith(SHAPES) else None
    return None if match is None else int(match[1])


def sprite_of(source: str, concept: str) -> Sprite | None:
    """The sprite that ``concept`` of a source is, by which pictures of it can be scored
    (``dopsd.shapes.sprite_oracle``); None for other concepts."""
    from dopsd.shapes.sprites import Sprite

    seed = sprites_seed(source)
    return None if seed is None else Sprite.named(seed, concept)


def check_shapes_source(source: str, key: str = "data.source") -> None:
    """Raises ConfigError, in the name of ``key``, for a `shapes:` source that there is not."""
    from dopsd.shapes.concepts import CONCEPTS

    if source.removeprefix(SHAPES) not in CONCEPTS and sprites_seed(source) is None:
        raise ConfigError(
            f"{key}: {shown.value(source)}, allowed: "
            + ", ".join(f"{SHAPES}{name}" for name in sorted(CONCEPTS))
            + f", {SHAPES}sprites#SEED (a whole number)"
        )


def shapes_name(config: RunConfig, source: str) -> str:
    """What a manifest calls such a source: all that decides its rows."""
    data = config.data
    if sprites_seed(source) is not None:
        return f"{source} concepts={data.shapes_concepts} count={data.shapes_count}"
    return f"{source} count={data.shapes_count} seed={config.run.seed}"


def write_shapes(config: RunConfig, source: str, folder: Path) -> str:
    """Draw such a source into ``folder``; returns its table. Raises as
    :func:`check_shapes_source`."""
    from dopsd.shapes.concepts import write_concept_set
    from dopsd.shapes.sets import sprite_pictures, write_set
    from dopsd.shapes.sprites import sprites

    check_shapes_source(source)
    data, seed = config.data, sprites_seed(source)
    if seed is None:
        name = source.removeprefix(SHAPES)
        return str(write_concept_set(name, folder, data.shapes_count, config.run.seed))
    pictures = sprite_pictures(sprites(seed, data.shapes_concepts), data.shapes_count)
    return str(write_set(pictures, folder))


def listed_shapes(config: RunConfig, source: str) -> Iterator[Listed]:
    """Its samples without their pictures; raises as :func:`check_shapes_source`."""
    from dopsd.shapes import concepts, sprites

    check_shapes_source(source)
    data, seed = config.data, sprites_seed(source)
    names, keys = [source.removeprefix(SHAPES)], tuple(concepts.CAPTION_KINDS)
    if seed is not None:
        names = [sprites.sprite_name(number) for number in range(data.shapes_concepts)]
        keys = tuple(sprites.CAPTION_KINDS)
    return ((name, keys, "") for name in names for _ in range(data.shapes_count))
