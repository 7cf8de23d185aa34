"""AdamW's state out of and into DeepSpeed, by parameter name: the same for every ZeRO stage and
every number of learners."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dopsd.learner.zero.adamw8bit import is_eight_bit, plain_moments, take_plain_moments
from dopsd.learner.zero.deepspeed_private import flat_parts, link_state, set_from_whole

MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"
"""The teacher's weights, of a run whose weights are all trained."""


def updates_taken(zero: Any) -> int:
    """Updates that AdamW has counted."""
    states = [zero.optimizer.state.get(flat) for flat in flat_parts(zero)]
    return int(states[0]["step"]) if states and all(states) else 0


def optimizer_state(
    zero: Any, parameters: dict[str, nn.Parameter]
) -> tuple[int, dict[str, Tensor]]:
    """(updates taken, {``<name>.exp_avg`` and ``<name>.exp_avg_sq``: fp32 on the CPU}). Collective.

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
            for key in MOMENTS:
                full = safe_get_full_optimizer_state(parameter, key)
                moments[f"{name}.{key}"] = full.detach().float().cpu().clone()
    return updates, moments


def set_optimizer_state(
    zero: Any, parameters: dict[str, nn.Parameter], step: int, moments: dict[str, Tensor]
) -> None:
    """Inverse of :func:`optimizer_state` on a fresh optimizer; every rank is given all of it."""
    if not step:
        return
    begin(zero, step)
    for name, parameter in parameters.items():
        for key in MOMENTS:
            set_from_whole(parameter, key, moments[f"{name}.{key}"])
    if is_eight_bit(zero.optimizer):
        take_plain_moments(zero.optimizer, flat_parts(zero), step, partial(link_state, zero))


def begin(zero: Any, step: int, averaged: bool = False) -> None:
    """AdamW's state after ``step`` updates, as its first update makes it; where there is none yet,
    with moments of zero."""
    adam = isinstance(zero.optimizer, (torch.optim.Adam, torch.optim.AdamW))
    for flat in flat_parts(zero):
        state = zero.optimizer.state[flat]
        # torch counts in a tensor, DeepSpeed's own Adam in an integer.
        state["step"] = torch.tensor(float(step)) if adam else step
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(flat.data)
        if averaged:
            state[AVERAGE] = flat.detach().clone()
    link_state(zero)
