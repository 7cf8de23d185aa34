"""The shapes world: one patterned shape on a plain ground, drawn as pixel art.

A canvas has 16x16 cells and is shown at 32x32 px (nearest neighbour, factor 2). One object of 8x8
cells stands in one of the four quadrants, so that its outline is aligned with the 2x2-cell tokens
of the tiny diffusion transformer: which quadrant is free, and captions never name it. A pattern is
a wallpaper of period 4 fixed to the canvas, and the shape is a window onto it.

The pattern ``bars`` and the shape ``ring`` belong to the world but to no caption of the base's
training: they are what a user wants to teach. Besides them there are random tiles and sprites
without a name, which captions call ``[V]``.

Every cell is lighter or darker than its colour by ``GRAIN``, independent of all others. No caption
names this grain and no picture beside a prompt has the grain of what is to be drawn: it is the fine
detail that is still open when everything else about a picture is decided, as skin or leaves are. A
model that draws the mean of all pictures draws none of it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

CELLS = 16
PIXELS = 32
OBJECT = 8
TILE = 4
POSITIONS = tuple(range(0, CELLS - OBJECT + 1, OBJECT))
GRAIN = 0.04
"""Of [0, 1], for all three channels."""

FILLS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 240),
    "yellow": (243, 215, 50),
    "purple": (150, 60, 190),
    "orange": (243, 130, 30),
}
GROUNDS = {
    "black": (12, 12, 12),
    "gray": (120, 120, 120),
    "teal": (12, 110, 110),
    "brown": (110, 70, 40),
}
INK = (243, 243, 243)

FILL_RGB = torch.tensor(list(FILLS.values())).float() / 255
GROUND_RGB = torch.tensor(list(GROUNDS.values())).float() / 255
INK_RGB = torch.tensor(INK).float() / 255

ATTRIBUTES = ("fill", "pattern", "shape", "ground")
RARE_TOKEN = "[V]"


def _mask(rows: str) -> Tensor:
    return torch.tensor([[float(cell) for cell in row] for row in rows.split()])


_CIRCLE = _mask("00111100 01111110 11111111 11111111 11111111 11111111 01111110 00111100")
_HOLE = torch.zeros(OBJECT, OBJECT)
_HOLE[2:6, 2:6] = 1
MASKS = {
    "square": torch.ones(OBJECT, OBJECT),
    "circle": _CIRCLE,
    "triangle": _mask("00011000 00011000 00111100 00111100 01111110 01111110 11111111 11111111"),
    "cross": _mask("00011000 00011000 00011000 11111111 11111111 00011000 00011000 00011000"),
    "ring": _CIRCLE * (1 - _HOLE),
}
TILES = {
    "flat": torch.zeros(TILE, TILE),
    "striped": torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None].repeat(1, TILE),
    "checkered": (torch.arange(TILE)[:, None] + torch.arange(TILE)[None]).remainder(2).float(),
    "bars": torch.tensor([0.0, 0.0, 1.0, 1.0])[None].repeat(TILE, 1),
}
HELD_OUT_SHAPE = "ring"
HELD_OUT_PATTERN = "bars"
NAMES = {
    "fill": tuple(FILLS),
    "pattern": tuple(TILES),
    "shape": tuple(MASKS),
    "ground": tuple(GROUNDS),
}
"""Values of each of ``ATTRIBUTES`` that have a name."""
SHAPES = tuple(name for name in MASKS if name != HELD_OUT_SHAPE)
PATTERNS = tuple(name for name in TILES if name != HELD_OUT_PATTERN)


@dataclass(frozen=True)
class Scene:
    """One picture of the world.

    ``shape`` and ``pattern`` are names of ``MASKS`` and ``TILES``, or None for a nameless sprite
    or tile. ``mask`` is [8, 8] and ``tile`` [4, 4], both of zeros and ones; a one of the tile is
    ink (white), a zero the fill colour. ``x`` and ``y`` are multiples of 8.
    """

    fill: str
    ground: str
    shape: str | None
    pattern: str | None
    x: int
    y: int
    mask: Tensor
    tile: Tensor
    grain: Tensor | None = None
    """[16, 16] of ones (lighter) and minus ones (darker); None for a plain picture."""

    def named(self, attribute: str) -> str | None:
        """Return the name of one of ``ATTRIBUTES``, or None where it has none."""
        return getattr(self, attribute)

    def moved(self, rng: random.Random) -> Scene:
        """Return the same object in another picture: place and grain are drawn anew."""
        x, y = rng.choice(POSITIONS), rng.choice(POSITIONS)
        return replace(self, x=x, y=y, grain=random_grain(rng))

    def plain(self) -> Scene:
        """Return the scene without grain."""
        return replace(self, grain=None)


def sample_scene(
    rng: random.Random,
    *,
    shape: str | None = None,
    pattern: str | None = None,
    nameless_shape: float = 0.0,
    nameless_pattern: float = 0.0,
) -> Scene:
    """Draw a scene; a given ``shape`` or ``pattern`` is kept (the held-out names are allowed).

    ``rng`` is the only source of randomness. ``shape`` and ``pattern``: keys of ``MASKS`` and
    ``TILES``; None draws one of ``SHAPES`` and ``PATTERNS``. ``nameless_shape`` and
    ``nameless_pattern``: probability of a random sprite or tile in place of a drawn one. Raises
    KeyError for a name that is not of this world.
    """
    if shape is None and rng.random() >= nameless_shape:
        shape = rng.choice(SHAPES)
    if pattern is None and rng.random() >= nameless_pattern:
        pattern = rng.choice(PATTERNS)
    return Scene(
        fill=rng.choice(tuple(FILLS)),
        ground=rng.choice(tuple(GROUNDS)),
        shape=shape,
        pattern=pattern,
        x=rng.choice(POSITIONS),
        y=rng.choice(POSITIONS),
        mask=MASKS[shape] if shape else random_sprite(rng),
        tile=TILES[pattern] if pattern else random_tile(rng),
        grain=random_grain(rng),
    )


def random_grain(rng: random.Random) -> Tensor:
    """Draw [16, 16] of ones and minus ones, each cell on its own."""
    bits = rng.getrandbits(CELLS**2)
    return torch.tensor([2.0 * (bits >> i & 1) - 1 for i in range(CELLS**2)]).view(CELLS, CELLS)


def every_scene() -> list[Scene]:
    """Return all scenes that the base's captions can describe (1,152 of them), without grain."""
    return [
        Scene(fill, ground, shape, pattern, x, y, MASKS[shape], TILES[pattern])
        for shape, pattern, fill, ground, x, y in product(
            SHAPES, PATTERNS, FILLS, GROUNDS, POSITIONS, POSITIONS
        )
    ]


def _is_held_out_tile(tile: Tensor) -> bool:
    bars = TILES[HELD_OUT_PATTERN]
    return any(torch.equal(tile, bars.roll(shift, 1)) for shift in range(TILE))


def random_tile(rng: random.Random) -> Tensor:
    """Draw a nameless [4, 4] tile: rows, columns, 2x2 blocks or free cells; never ``bars``."""
    while True:
        kind = rng.choice(("rows", "columns", "columns", "blocks", "cells"))
        if kind == "cells":
            bits = torch.tensor([rng.random() < 0.4 for _ in range(TILE * TILE)])
            tile = bits.view(TILE, TILE).float()
        elif kind == "blocks":
            blocks = torch.tensor([rng.random() < 0.5 for _ in range(4)]).view(2, 2).float()
            tile = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
        else:
            line = torch.tensor([rng.random() < 0.5 for _ in range(TILE)]).float()
            tile = line[:, None] if kind == "rows" else line[None]
            tile = tile.expand(TILE, TILE).clone()
        if 0 < tile.mean() <= 0.75 and not _is_held_out_tile(tile):
            return tile


def random_sprite(rng: random.Random) -> Tensor:
    """Draw a nameless [8, 8] sprite, symmetric from left to right; never close to ``ring``.

    Three families, so that an outline, a hole and a block structure are each seen in many forms:
    free symmetric blobs, known outlines with a hole or a bite, and shapes of 2x2 blocks.
    """
    while True:
        kind = rng.choice(("blob", "bitten", "blocks"))
        if kind == "blocks":
            half = torch.tensor([rng.random() < 0.55 for _ in range(8)]).view(4, 2).float()
            left = half.repeat_interleave(2, 0).repeat_interleave(2, 1)
            mask = torch.cat([left, left.flip(1)], 1)
        elif kind == "bitten":
            mask = MASKS[rng.choice(("square", "circle", "triangle"))].clone()
            if rng.random() < 0.5:
                mask = mask.flip(0)
            top, height = rng.randrange(0, 7), rng.choice((1, 2, 2, 4))
            inner = rng.choice((0, 1, 2, 2, 3))
            mask[top : top + height, inner : OBJECT - inner] = 0
        else:
            grid = torch.tensor([rng.gauss(0, 1) for _ in range(12)]).view(1, 1, 4, 3)
            half = torch.nn.functional.interpolate(
                grid, (OBJECT, OBJECT // 2), mode="bilinear", align_corners=True
            )[0, 0]
            half = (half + torch.linspace(-0.6, 0.9, OBJECT // 2)[None] > 0).float()
            mask = torch.cat([half, half.flip(1)], 1)
        ring = MASKS[HELD_OUT_SHAPE]
        overlap = (mask * ring).sum() / torch.maximum(mask, ring).sum()
        # A sprite reaches all sides of its box, so that the box can be seen in the picture.
        fills_box = bool(mask[0].any() and mask[-1].any() and mask[:, 0].any())
        if fills_box and mask.mean() > 0.3 and overlap < 0.8:
            return mask


def show(cells: Tensor, factor: int = PIXELS // CELLS) -> Tensor:
    """Enlarge [..., H, W] by a whole factor, nearest neighbour."""
    return cells.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def render_cells(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes at one pixel a cell: [N, 3, 16, 16] float32 in [0, 1]."""
    mask = torch.zeros(len(scenes), 1, CELLS, CELLS)
    for row, scene in enumerate(scenes):
        mask[row, 0, scene.y : scene.y + OBJECT, scene.x : scene.x + OBJECT] = scene.mask
    repeats = CELLS // TILE
    ink = torch.stack([scene.tile for scene in scenes]).repeat(1, repeats, repeats)[:, None]
    fills, grounds = list(FILLS), list(GROUNDS)
    fill = FILL_RGB[[fills.index(scene.fill) for scene in scenes]][:, :, None, None]
    ground = GROUND_RGB[[grounds.index(scene.ground) for scene in scenes]][:, :, None, None]
    surface = fill * (1 - ink) + INK_RGB.view(1, 3, 1, 1) * ink
    plain = torch.zeros(CELLS, CELLS)
    grain = torch.stack([plain if scene.grain is None else scene.grain for scene in scenes])
    return surface * mask + ground * (1 - mask) + GRAIN * grain[:, None]


def render(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes as shown: [N, 3, 32, 32] float32 in [0, 1]."""
    return show(render_cells(scenes))


def caption(scene: Scene, keep: Collection[str], rare: Collection[str] = ()) -> str:
    """Describe a scene, naming only the attributes in ``keep``.

    ``keep``: which of ``ATTRIBUTES`` the text mentions; a shape left out reads ``thing``. ``rare``:
    of those, the ones that read ``[V]`` instead of their name, as a kept attribute without a name
    always does. An example: ``a red striped [V] on teal``.
    """
    words = ["a"]
    for attribute in ("fill", "pattern", "shape"):
        if attribute in keep:
            name = None if attribute in rare else scene.named(attribute)
            words.append(name or RARE_TOKEN)
        elif attribute == "shape":
            words.append("thing")
    if "ground" in keep:
        words += ["on", scene.ground]
    return " ".join(words)


def random_keep(rng: random.Random) -> tuple[str, ...]:
    """Draw the attributes that a training caption names: all, many or few of them."""
    share = rng.choice((1.0, 0.6, 0.3))
    return tuple(name for name in ATTRIBUTES if rng.random() < share)
