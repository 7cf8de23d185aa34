"""What is trained, and its average, as one flat tensor on the device: how they are published.

In the compute dtype. One collective at most for all tensors together, none where the ranks hold the
weights whole already.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dopsd.learner.zero.deepspeed_private import own_part, owned_span, whole_shape
from dopsd.policy.flat import FlatLayout


def layout_of(parameters: dict[str, nn.Parameter]) -> FlatLayout:
    """How they lie in a flat tensor, in the dtype of the first."""
    dtype = next(iter(parameters.values())).dtype
    return FlatLayout({name: whole_shape(p) for name, p in parameters.items()}, dtype)


@torch.no_grad()
def flat_whole(parameters: dict[str, nn.Parameter]) -> Tensor:
    """[numel] of the parameters, which are the masters cast and whole on this rank."""
    dtype = next(iter(parameters.values())).dtype
    return torch.cat([p.detach().flatten().to(dtype) for p in parameters.values()])


@torch.no_grad()
def flat_sharded(
    parameters: dict[str, nn.Parameter],
    key: str | None,
    device: torch.device,
    world: int,
    everywhere: bool = False,
) -> Tensor:
    """[numel] of the masters, or of ``key`` of the optimizer's state, cast, on rank 0 or
    ``everywhere``; elsewhere only part of it is set.

    Every rank adds its own part to zeros, as integers: the bits stay as they are, and they could
    not in a sum of numbers, where -0 + 0 is 0. Collective.
    """
    layout = layout_of(parameters)
    padded = layout.numel + layout.numel % 2  # whole 32-bit integers
    flat = torch.zeros(padded, dtype=layout.dtype, device=device)
    for place, parameter in zip(flat[: layout.numel].split(layout.sizes), parameters.values()):
        start, stop = owned_span(parameter)
        if stop > start:
            place[start:stop] = own_part(parameter, key)[: stop - start]
    if world > 1:
        bits = flat.view(torch.int32)
        if everywhere:
            torch.distributed.all_reduce(bits)
        else:
            torch.distributed.reduce(bits, 0)
    return flat[: layout.numel]
