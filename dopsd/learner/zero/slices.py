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
from dopsd.learner.zero.optimizer_state import AVERAGE, MOMENTS, begin, flat_parts

MASTER = "master"


Read = Callable[[str, int, int], Tensor]
"""(name, start, stop): those elements of a flattened tensor, fp32 on the CPU."""


def updates_taken(zero: Any) -> int:
    """Updates that AdamW has counted."""
    states = [zero.optimizer.state.get(flat) for flat in flat_parts(zero)]
    return int(states[0]["step"]) if states and all(states) else 0


def own_slices(zero: Any, parameters: dict[str, nn.Parameter]) -> Iterator[Slice]:
    """What this rank owns: ``<name>.master``, ``.exp_avg``, ``.exp_avg_sq`` and ``.average``, as
    far as there are any yet."""
    kinds = _kinds(zero)
    for name, parameter in parameters.items():
        start, stop = _span(parameter)
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
        start, stop = _span(parameter)
        for kind in _kinds(zero) if stop > start else ():
            _set(parameter, kind, read(f"{name}.{kind}", start, stop))
    _cast(zero, parameters)


def _kinds(zero: Any) -> list[str]:
    state = zero.optimizer.state.get(flat_parts(zero)[0]) or {}
    return [MASTER, *(kind for kind in (*MOMENTS, AVERAGE) if kind in state)]


def _span(parameter: Any) -> tuple[int, int]:
    """[start, stop) of the flattened parameter that this rank owns; may be empty."""
    if hasattr(parameter, "ds_tensor"):
        size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
        return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)
    if parameter._hp_mapping is None:
        return 0, 0
    address = parameter._hp_mapping.lp_fragment_address
    return address.start, address.start + address.numel


def _key(kind: str) -> str | None:
    """DeepSpeed's name: None is the master weight."""
    return None if kind == MASTER else kind


def _values(parameter: Any, kind: str, count: int) -> Tensor:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        found: Tensor = parameter._hp_mapping.get_hp_fragment(_key(kind))
    elif kind == MASTER:
        found = safe_get_local_fp32_param(parameter)
    else:
        found = safe_get_local_optimizer_state(parameter, kind)
    return found[:count]  # the last rank's part is padded


def _set(parameter: Any, kind: str, values: Tensor) -> None:
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        parameter._hp_mapping.get_hp_fragment(_key(kind)).copy_(values)
        return
    part = values.new_zeros(parameter.ds_tensor.ds_numel)
    part[: values.numel()] = values
    if kind == MASTER:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, kind)


def _cast(zero: Any, parameters: dict[str, nn.Parameter]) -> None:
    """The compute weights from the masters, as an update ends. Collective."""
    if hasattr(zero, "update_lp_params"):  # ZeRO-1 and 2: every rank casts its part, all gather
        zero.update_lp_params()
        return
    parts: list[Any] = list(parameters.values())
    for parameter in parts:
        own = parameter.ds_tensor
        own.data.copy_(_values(parameter, MASTER, own.ds_numel))
    if zero.persistent_parameters:  # those that ZeRO-3 keeps whole everywhere
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
