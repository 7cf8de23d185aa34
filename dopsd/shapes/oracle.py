"""An exact judge for pictures of the shapes world.

It reads every attribute off the pixels by comparing with what the renderer would have drawn, so a
score here is a count of pictures, with no learned judge in between.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from dopsd.shapes import world
from dopsd.shapes.world import Scene

# A cell belongs to the object if one colour channel differs this much from the ground.
FOREGROUND_THRESHOLD = 0.14

# A picture is of this world if its silhouette and its colours are this close to a rendering.
VALID_IOU = 0.9
VALID_RMSE = 0.08
CRISP = 0.25
"""How far, in units of the grain, a crisp cell may be from it."""
CANDIDATES = 4


@dataclass(frozen=True)
class Reading:
    """What the oracle saw in one picture.

    ``iou`` compares the silhouette with the nearest shape of the world; ``rmse`` is the distance
    (per channel, in [0, 1]) to the nearest rendering, whatever its grain; ``palette_error`` the
    RMSE of the object's cells to the nearest legal colour, lighter or darker, a measure of
    crispness that needs no template. ``x`` and ``y`` are the cell where the object begins.

    ``contrast`` and ``crisp`` tell of the grain alone, from what is left of each cell's brightness
    after the best fit of a legal scene, not of the scene that was asked for: the median amount in
    units of ``GRAIN`` (1 for a picture of this world), and the share of cells within a quarter of
    ``GRAIN`` of it. ``correlation``: of that rest between neighbours, 0 where cells are free.
    """

    fill: str
    ground: str
    shape: str
    pattern: str
    iou: float
    rmse: float
    palette_error: float
    contrast: float
    crisp: float
    correlation: float
    x: int
    y: int

    @property
    def valid(self) -> bool:
        """Whether the picture lies on the world's manifold, whatever it shows."""
        return self.iou >= VALID_IOU and self.rmse < VALID_RMSE

    def matches(self, scene: Scene, attributes: Collection[str]) -> bool:
        """Whether every listed attribute is the scene's."""
        return all(getattr(self, name) == scene.named(name) for name in attributes)


def _silhouettes() -> tuple[list[tuple[str, int, int]], Tensor]:
    # Every place is listed: a model may put an object where the renderer never does.
    places, masks = [], []
    for shape, mask in world.MASKS.items():
        for y, x in product(range(world.CELLS - world.OBJECT + 1), repeat=2):
            canvas = torch.zeros(world.CELLS, world.CELLS)
            canvas[y : y + world.OBJECT, x : x + world.OBJECT] = mask
            places.append((shape, x, y))
            masks.append(canvas)
    return places, torch.stack(masks)


_PLACES, _MASKS = _silhouettes()
_PATTERNS = list(world.TILES)
_FILLS = list(world.FILLS)
_GROUNDS = list(world.GROUNDS)
_SURFACES = torch.stack(
    [
        fill[:, None, None] * (1 - ink) + world.INK_RGB[:, None, None] * ink
        for ink in (tile.repeat(4, 4)[None] for tile in world.TILES.values())
        for fill in world.FILL_RGB
    ]
)


@torch.no_grad()
def read(images: Tensor) -> list[Reading]:
    """Read pictures.

    ``images``: [N, 3, 32, 32] float in [0, 1]. Raises ValueError for another shape.
    """
    cells = picture_cells(images)
    return [reading for chunk in cells.split(256) for reading in _read_cells(chunk)]


def picture_cells(images: Tensor) -> Tensor:
    """The cells [N, 3, 16, 16] of pictures; raises as :func:`read`."""
    if images.shape[1:] != (3, world.PIXELS, world.PIXELS):
        raise ValueError(f"images are [N, 3, 32, 32], got {tuple(images.shape)}")
    return F.avg_pool2d(images.float().clamp(0, 1), 2)


def ground_of(cells: Tensor) -> Tensor:
    """The ground [N] of each picture, by what most of its edge is nearest to."""
    edge = torch.cat([cells[:, :, 0], cells[:, :, -1], cells[:, :, :, 0], cells[:, :, :, -1]], 2)
    return torch.cdist(edge.median(2).values, world.GROUND_RGB).argmin(1)


def _read_cells(cells: Tensor) -> list[Reading]:
    ground = ground_of(cells)
    ground_rgb = world.GROUND_RGB[ground][:, :, None, None]
    foreground = ((cells - ground_rgb).abs().amax(1) > FOREGROUND_THRESHOLD).float()

    flat, masks = foreground.flatten(1), _MASKS.flatten(1)
    overlap = flat @ masks.T
    iou = overlap / (flat.sum(1, keepdim=True) + masks.sum(1)[None] - overlap).clamp(min=1)
    top = iou.topk(CANDIDATES, 1)

    # The error over the whole canvas decides between near-equal silhouettes; it splits into the
    # error of each surface inside the mask and that of the ground outside.
    mask = _MASKS[top.indices]
    on_surface = grainy_distance(cells[:, None] - _SURFACES[None], 2)
    on_ground = grainy_distance(cells - ground_rgb, 1)
    inside = torch.einsum("nshw,nkhw->nks", on_surface, mask)
    outside = torch.einsum("nhw,nkhw->nk", on_ground, 1 - mask)
    error = (inside + outside[:, :, None]).flatten(1) / (3 * world.CELLS**2)
    best = error.min(1)
    palette = _palette_error(cells, ground_rgb, foreground)
    chosen = best.indices // len(_SURFACES), best.indices % len(_SURFACES)
    inside = mask[torch.arange(len(cells)), chosen[0]][:, None]
    fitted = _SURFACES[chosen[1]] * inside + ground_rgb * (1 - inside)
    contrast, crisp, correlation = grain_of(cells - fitted)

    readings = []
    for row, choice in enumerate(best.indices.tolist()):
        candidate, surface = divmod(choice, len(_SURFACES))
        pattern, fill = divmod(surface, len(_FILLS))
        shape, x, y = _PLACES[int(top.indices[row, candidate])]
        readings.append(
            Reading(
                fill=_FILLS[fill],
                ground=_GROUNDS[int(ground[row])],
                shape=shape,
                pattern=_PATTERNS[pattern],
                iou=float(top.values[row, candidate]),
                rmse=float(best.values[row]) ** 0.5,
                palette_error=float(palette[row]),
                contrast=float(contrast[row]),
                crisp=float(crisp[row]),
                correlation=float(correlation[row]),
                x=x,
                y=y,
            )
        )
    return readings


def grainy_distance(difference: Tensor, channel: int) -> Tensor:
    """Squared distance to a colour made lighter or darker by the grain, whichever is nearer."""
    lighter, darker = (
        (difference + step).pow(2).sum(channel) for step in (-world.GRAIN, world.GRAIN)
    )
    return torch.minimum(lighter, darker)


def grain_of(rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``contrast``, ``crisp`` and ``correlation`` (see :class:`Reading`), each [N], of what a fit
    leaves of the cells [N, 3, 16, 16]."""
    shade = rest.mean(1) / world.GRAIN
    amount = shade.abs().flatten(1)
    centred = shade - shade.mean((1, 2), keepdim=True)
    beside = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2))
    below = (centred[:, 1:] * centred[:, :-1]).mean((1, 2))
    variance = centred.pow(2).mean((1, 2)).clamp(min=1e-9)
    crisp = ((amount - 1).abs() < CRISP).float().mean(1)
    return amount.median(1).values, crisp, (beside + below) / 2 / variance


def _palette_error(cells: Tensor, ground_rgb: Tensor, foreground: Tensor) -> Tensor:
    count = len(cells)
    legal = torch.cat([world.FILL_RGB, world.INK_RGB[None]])[None].expand(count, -1, -1)
    legal = torch.cat([legal, ground_rgb[:, None, :, 0, 0]], 1)
    legal = torch.cat([legal - world.GRAIN, legal + world.GRAIN], 1)
    pixels = cells.flatten(2).transpose(1, 2)
    distance = (pixels[:, :, None] - legal[:, None]).pow(2).mean(-1).amin(-1)
    inside = foreground.flatten(1)
    return ((distance * inside).sum(1) / inside.sum(1).clamp(min=1)).sqrt()
