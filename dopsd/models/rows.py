"""Rows of a batch that cannot share a forward: a forward for each group of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from dopsd.records import Context


def rows_by(keys: Iterable[Hashable]) -> list[list[int]]:
    """Numbers of the rows with equal keys, one key to each row."""
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def velocity_by_rows(
    velocity: Callable[[Tensor, Tensor, Context], Tensor],
    groups: list[list[int]],
    latents: Tensor,
    sigma: Tensor,
    context: Context,
) -> Tensor:
    """``velocity`` of each group by itself, [B, C, h, w] in the batch's order."""
    parts = [velocity(latents[rows], sigma[rows], context.rows(rows)) for rows in groups]
    order = torch.tensor([row for rows in groups for row in rows])
    return torch.cat(parts)[order.argsort()]
