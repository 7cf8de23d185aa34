"""The optimizer's state out of and into DeepSpeed, by parameter name: the same for every ZeRO
stage and every number of learners.

Whole, or as slices of masters, moments and average that are never gathered. Every ZeRO stage cuts a
flattened parameter somewhere else, and so does every number of ranks; as (name, start, stop) the
parts of one are the parts of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dopsd.checkpoint.slices import Slice
from dopsd.errors import CheckpointError
from dopsd.learner.zero.adamw8bit import is_eight_bit, plain_moments, take_plain_moments
from dopsd.learner.zero.deepspeed_private import (
    cast_masters,
    flat_parts,
    link_state,
    own_part,
    owned_span,
    set_from_whole,
    set_own_part,
    unlink_state,
)
from dopsd.learner.zero.prodigy import STATES, Prodigy
from dopsd.models.finite import all_finite

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"
"""The teacher's weights."""
_WORDS = {MASTER: "student", AVERAGE: "teacher"}
Read = Callable[[str, int, int], Tensor]
"""(name, start, stop): those elements of a flattened tensor, fp32 on the CPU."""


def updates_taken(zero: Any) -> int:
    """Updates that the optimizer has counted."""
    states = [zero.optimizer.state.get(flat) for flat in flat_parts(zero)]
    return int(states[0]["step"]) if states and all(states) else 0


def moment_names(zero: Any) -> tuple[str, ...]:
    """What the optimizer keeps of each weight, as a checkpoint names it."""
    return STATES if isinstance(zero.optimizer, Prodigy) else MOMENTS


def scalars(zero: Any) -> dict[str, float]:
    """What the optimizer keeps of all weights together."""
    return zero.optimizer.scalars() if isinstance(zero.optimizer, Prodigy) else {}


def optimizer_state(
    zero: Any, parameters: dict[str, nn.Parameter]
) -> tuple[int, dict[str, Tensor]]:
    """(updates taken, {``<name>.exp_avg``, ``<name>.exp_avg_sq``, of Prodigy more: fp32 on the
    CPU}). Collective.

    Before the first update there are no moments. ``zero`` is DeepSpeed's ZeRO optimizer.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    updates = updates_taken(zero)
    if not updates:
        return 0, {}
    moments = {}
    plain: Any = nullcontext()
    if is_eight_bit(zero.optimizer):
        plain = plain_moments(zero.optimizer, flat_parts(zero), partial(link_state, zero))
    with plain:
        for name, parameter in parameters.items():
            for key in moment_names(zero):
                full = safe_get_full_optimizer_state(parameter, key)
                moments[f"{name}.{key}"] = full.detach().float().cpu().clone()
    return updates, moments


def set_optimizer_state(
    zero: Any,
    parameters: dict[str, nn.Parameter],
    step: int,
    moments: dict[str, Tensor],
    scalars: dict[str, float],
) -> None:
    """Inverse of :func:`optimizer_state` and :func:`scalars` on a fresh optimizer; every rank is
    given all of it. Raises CheckpointError for what is missing."""
    if not step:
        return
    if isinstance(zero.optimizer, Prodigy):
        zero.optimizer.set_scalars(scalars)
    begin(zero, step)
    for name, parameter in parameters.items():
        for key in moment_names(zero):
            if (moment := moments.get(f"{name}.{key}")) is None:
                raise CheckpointError(f"checkpoint: {name}.{key} is missing")
            set_from_whole(parameter, key, moment)
    if is_eight_bit(zero.optimizer):
        take_plain_moments(zero.optimizer, flat_parts(zero), step, partial(link_state, zero))


def begin(zero: Any, step: int) -> None:
    """The optimizer's state after ``step`` updates, as its first update makes it; where there is
    none yet, with moments of zero."""
    adam = isinstance(zero.optimizer, (torch.optim.Adam, torch.optim.AdamW))
    for flat in flat_parts(zero):
        state = zero.optimizer.state[flat]
        # torch counts in a tensor, DeepSpeed's own Adam in an integer.
        state["step"] = torch.tensor(float(step)) if adam else step
        for key in moment_names(zero):
            if key not in state:
                state[key] = torch.zeros_like(flat.data)
    link_state(zero)


def forget_updates(zero: Any) -> None:
    """The optimizer's state before its first update, which makes it anew, and no average beside
    it. Not of the 8-bit kind."""
    for flat in flat_parts(zero):
        zero.optimizer.state.pop(flat, None)
    if isinstance(zero.optimizer, Prodigy):
        zero.optimizer.forget()
    unlink_state(zero)


def start_average(zero: Any) -> None:
    """Keep an fp32 average of the masters beside the optimizer's moments, sharded as they are. It
    begins at the masters as they are now."""
    flats = flat_parts(zero)
    if not all(zero.optimizer.state.get(flat) for flat in flats):
        begin(zero, 0)
        if is_eight_bit(zero.optimizer):
            take_plain_moments(zero.optimizer, flats, 0, partial(link_state, zero))
    for flat in flats:
        zero.optimizer.state[flat][AVERAGE] = flat.detach().clone()
    link_state(zero)


def set_average(parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
    """Set an average that was started from the whole one, which every rank is given."""
    for name, parameter in parameters.items():
        set_from_whole(parameter, AVERAGE, average[name])


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


def own_nonfinite(zero: Any, parameters: dict[str, nn.Parameter]) -> str:
    """Which tensor of this rank's part holds infinity or nan, in words; empty when all are finite.

    Masters and optimizer state as they lie on the device are looked at as a whole. Only of what is
    not finite the parts are: ZeRO-3 pads, and nobody says with what.
    """
    flats = flat_parts(zero)
    states = (value for flat in flats for value in (zero.optimizer.state.get(flat) or {}).values())
    moments = [t for t in states if isinstance(t, Tensor) and t.is_floating_point()]
    if all_finite([flat.detach() for flat in flats] + moments):
        return ""
    for piece in own_slices(zero, parameters):
        if not all_finite([piece.values().detach()]):
            name, _, kind = piece.name.rpartition(".")
            return f"{_WORDS.get(kind, kind)} {name}"
    return ""


def _kinds(zero: Any) -> list[str]:
    state = zero.optimizer.state.get(flat_parts(zero)[0]) or {}
    return [MASTER, *(kind for kind in (*moment_names(zero), AVERAGE) if kind in state)]


def _key(kind: str) -> str | None:
    """As deepspeed_private has it."""
    return None if kind == MASTER else kind


def _values(parameter: nn.Parameter, kind: str, count: int) -> Tensor:
    return own_part(parameter, _key(kind))[:count]
