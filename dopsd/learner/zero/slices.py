"""This rank's part of masters, moments and average out of and into DeepSpeed, never gathered.

Every ZeRO stage cuts a flattened parameter somewhere else, and so does every number of ranks; as
(name, start, stop) the parts of one are the parts of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dopsd.checkpoint.slices import Slice
from dopsd.learner.zero.deepspeed_private import (
    cast_masters,
    flat_parts,
    own_part,
    owned_span,
    set_own_part,
)
from dopsd.learner.zero.optimizer_state import AVERAGE, MOMENTS, begin

MASTER = "master"

Read = Callable[[str, int, int], Tensor]
"""(name, start, stop): those elements of a flattened tensor, fp32 on the CPU."""


def own_slices(zero: Any, parameters: dict[str, nn.Parameter]) -> Iterator[Slice]:
    """What this rank owns: ``<name>.master``, ``.exp_avg``, ``.exp_avg_sq`` and ``.average``, as
    far as there are any yet."""
    kinds = _kinds(zero)
    for name, parameter in parameters.items():
        start, stop = owned_span(parameter)
        for kind in kinds if stop > start else ():
            values = partial(_values, parameter, kind, stop - start)
            yield Slice(f"{name}.{kind}", start, stop, values)


@torch.no_grad()
def restore_slices(
    zero: Any, parameters: dict[str, nn.Parameter], updates: int, read: Read
) -> None:
    """Inverse of :func:`own_slices` on a fresh optimizer, compute weights included. Collective.

    An average must have been started if the run keeps one.
    """
    if updates:
        begin(zero, updates)
    for name, parameter in parameters.items():
        start, stop = owned_span(parameter)
        for kind in _kinds(zero) if stop > start else ():
            set_own_part(parameter, _key(kind), read(f"{name}.{kind}", start, stop))
    cast_masters(zero, parameters)


def _kinds(zero: Any) -> list[str]:
    state = zero.optimizer.state.get(flat_parts(zero)[0]) or {}
    return [MASTER, *(kind for kind in (*MOMENTS, AVERAGE) if kind in state)]


def _key(kind: str) -> str | None:
    """As deepspeed_private has it."""
    return None if kind == MASTER else kind


def _values(parameter: nn.Parameter, kind: str, count: int) -> Tensor:
    return own_part(parameter, _key(kind))[:count]
