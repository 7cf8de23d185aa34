"""Whether a picture shows a sprite, cell by cell: counts of cells, no learned judge."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from dopsd.shapes import world
from dopsd.shapes.oracle import grainy_distance, ground_of, picture_cells
from dopsd.shapes.sprites import Sprite

SHOWN = 0.9
"""Share of right cells from which a picture shows a sprite."""
_GROUNDS = list(world.GROUNDS)
_COLOURS = torch.cat([world.FILL_RGB, world.INK_RGB[None], world.GROUND_RGB])
_INK, _FIRST_GROUND = len(world.FILLS), len(world.FILLS) + 1
"""Where in ``_COLOURS`` they are."""
_CHUNK = 64
"""Pictures that are held against every drawing at a time."""


@dataclass(frozen=True)
class SpriteReading:
    """What of a sprite was seen in one picture, at the place and in the fill that fit best.

    ``cells``: of the cells that the sprite has or that are not ground, the share in the colour
    that they should have. ``x`` and ``y``: the cell where the sprite begins.
    """

    cells: float
    fill: str
    ground: str
    x: int
    y: int

    @property
    def shows(self) -> bool:
        """Whether the picture shows the sprite."""
        return self.cells >= SHOWN


@torch.no_grad()
def read_sprite(images: Tensor, sprite: Sprite) -> list[SpriteReading]:
    """Look for a sprite in pictures.

    ``images``: [N, 3, 32, 32] float in [0, 1]. Raises ValueError for another shape.
    """
    drawings = _Drawings.of(sprite)
    chunks = picture_cells(images).split(_CHUNK)
    return [reading for cells in chunks for reading in _read_cells(cells, drawings)]


@dataclass(frozen=True)
class _Drawings:
    """All M ways to draw a sprite: every place, since a model may put an object where the renderer
    never does, in every fill."""

    ways: list[tuple[int, int, str]]
    """x, y, fill."""
    masks: Tensor
    """[M, 256], whether a cell is the sprite's."""
    colours: Tensor
    """[M, 256], indices of ``_COLOURS``; -1 where the sprite is not."""

    @classmethod
    def of(cls, sprite: Sprite) -> _Drawings:
        # The tile stays where it is: it belongs to the canvas.
        ink = sprite.tile.repeat(world.CELLS // world.TILE, world.CELLS // world.TILE).bool()
        room = world.CELLS - world.OBJECT
        ways, masks, colours = [], [], []
        for x, y in product(range(room + 1), repeat=2):
            mask = F.pad(sprite.mask, (x, room - x, y, room - y)).bool()
            for fill, name in enumerate(world.FILLS):
                ways.append((x, y, name))
                masks.append(mask)
                colours.append(torch.where(ink, _INK, fill).masked_fill(~mask, -1))
        return cls(ways, torch.stack(masks).flatten(1), torch.stack(colours).flatten(1))


def _read_cells(cells: Tensor, drawings: _Drawings) -> list[SpriteReading]:
    ground = ground_of(cells)
    near = grainy_distance(cells[:, None] - _COLOURS[None, :, :, None, None], 2).argmin(1)
    near = near.flatten(1)
    seen = near != (_FIRST_GROUND + ground)[:, None]
    right = (near[:, None] == drawings.colours).sum(2)
    union = (seen[:, None] | drawings.masks).sum(2)
    best = (right / union).max(1)
    readings = []
    for row, way in enumerate(best.indices.tolist()):
        x, y, fill = drawings.ways[way]
        share = float(best.values[row])
        readings.append(SpriteReading(share, fill, _GROUNDS[int(ground[row])], x, y))
    return readings
