"""As many toy concepts as one wants: each is one small sprite without a name.

A sprite is 8x8 cells, each of them ground, fill or ink: the outline and the tile of a nameless
object, both fixed, so that the picture of one shows all that the concept is. Fill, ground, place
and grain are each picture's own, and captions name the first two: ``a red [V] [V] on teal``, as
the base knows objects whose pattern and shape have no name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from dopsd.shapes import world
from dopsd.shapes.world import Scene

WORDLESS = ("pattern", "shape")
"""What ``[V]`` stands for in captions of a sprite."""
CAPTION_KINDS = {
    "short": (),
    "medium": ("fill",),
    "detailed": ("fill", "ground"),
    "user_prompt": ("ground",),
}
"""What each kind of caption names besides."""
_NAME = re.compile(r"sprite-([0-9]{4}|[1-9][0-9]{4,8})")


@dataclass(frozen=True)
class Sprite:
    """One concept: ``mask`` [8, 8] of the object's cells and ``tile`` [4, 4] of the inked ones."""

    seed: int
    number: int
    mask: Tensor
    tile: Tensor

    @classmethod
    def of(cls, seed: int, number: int) -> Sprite:
        """The concept ``number`` (from 0) of the catalogue ``seed``, whatever others there are."""
        rng = random.Random(f"sprites/{seed}/{number}")
        return cls(seed, number, world.random_sprite(rng), world.random_tile(rng))

    @classmethod
    def named(cls, seed: int, name: str) -> Sprite:
        """The concept of a name, as :attr:`name` gives it. Raises KeyError for any other."""
        if (match := _NAME.fullmatch(name)) is None:
            raise KeyError(name)
        return cls.of(seed, int(match[1]))

    @property
    def name(self) -> str:
        return sprite_name(self.number)

    def scenes(self, count: int) -> Iterator[Scene]:
        """``count`` pictures of it; more of them begin with the same ones."""
        rng = random.Random(f"sprites/{self.seed}/{self.number}/training")
        for _ in range(count):
            scene = world.sample_scene(rng, shape="square", pattern="flat")
            yield replace(scene, shape=None, pattern=None, mask=self.mask, tile=self.tile)


def sprite_name(number: int) -> str:
    """What the concept ``number`` of every catalogue is called."""
    return f"sprite-{number:04d}"


def sprites(seed: int, count: int) -> Iterator[Sprite]:
    """The first ``count`` concepts of a catalogue; more of them change none."""
    return (Sprite.of(seed, number) for number in range(count))


def sprite_caption(scene: Scene, keep: Collection[str]) -> str:
    """Describe a scene of a sprite by those of ``fill`` and ``ground`` that are in ``keep``."""
    return world.caption(scene, {*keep, *WORDLESS})


def sprite_captions(scene: Scene) -> dict[str, str]:
    """Captions of one training picture under the keys that ``dopsd`` draws from."""
    return {kind: sprite_caption(scene, keep) for kind, keep in CAPTION_KINDS.items()}
