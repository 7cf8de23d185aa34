"""DeepSpeed's private parts, all of them: where ZeRO keeps the fp32 masters of a parameter and what
the optimizer's state of them is. pyproject.toml allows the releases of which this is true.

``zero`` is DeepSpeed's ZeRO optimizer; a ``key`` names a tensor of AdamW's state, None the master.
Under ZeRO-3 a parameter has a ``ds_tensor``, this rank's part of it; else it is linked to its
fragment of the flat masters by ``_hp_mapping``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopsd.errors import CheckpointError

_FLAT = (
    "fp32_partitioned_groups_flat",  # ZeRO-3
    "single_partition_of_fp32_groups",  # ZeRO-1 and 2
    "fp32_groups_flat_partition",  # ZeRO-1 in bfloat16
)
"""Where DeepSpeed's optimizers keep this rank's part of the fp32 master weights."""


def forbid_extension(name: str) -> None:
    """Let DeepSpeed believe that one of its C++ extensions cannot be built here."""
    import deepspeed

    deepspeed.ops.__compatible_ops__[name] = False


def flat_parts(zero: Any) -> list[Tensor]:
    """This rank's parts of the fp32 masters, to which the optimizer's state belongs."""
    parts: list[Tensor] | None = next((getattr(zero, n) for n in _FLAT if hasattr(zero, n)), None)
    if not parts or any(part is None for part in parts):
        raise CheckpointError(
            f"learner.deepspeed: the optimizer state of {type(zero).__name__} cannot be gathered; "
            "allowed: ZeRO 1, 2 or 3 without NVMe offload"
        )
    return list(parts)


def link_state(zero: Any) -> None:
    """Tell ZeRO-1 and 2, which keep views of them, which tensors the optimizer's state holds."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def unlink_state(zero: Any) -> None:
    """The optimizer's state is gone: the next update, which makes it anew, links it."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False


def whole_numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, of which ZeRO-3 may have left nothing here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def owned_span(parameter: Any) -> tuple[int, int]:
    """[start, stop) of the flattened parameter that this rank owns; may be empty."""
    if hasattr(parameter, "ds_tensor"):
        size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
        return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)
    if parameter._hp_mapping is None:
        return 0, 0
    address = parameter._hp_mapping.lp_fragment_address
    return address.start, address.start + address.numel


def own_part(parameter: Any, key: str | None) -> Tensor:
    """This rank's part; longer than its span where ZeRO-3 pads the last one."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    part: Tensor
    if not hasattr(parameter, "ds_tensor"):
        part = parameter._hp_mapping.get_hp_fragment(key)
    elif key is None:
        part = safe_get_local_fp32_param(parameter)
    else:
        part = safe_get_local_optimizer_state(parameter, key)
    return part


def set_own_part(parameter: Any, key: str | None, values: Tensor) -> None:
    """Set this rank's part from the values of its span, 1-d."""
    if not hasattr(parameter, "ds_tensor"):
        parameter._hp_mapping.get_hp_fragment(key).copy_(values)
        return
    part = values.new_zeros(parameter.ds_tensor.ds_numel)
    part[: values.numel()] = values
    _set_local(parameter, key, part)


def set_from_whole(parameter: Any, key: str | None, value: Tensor) -> None:
    """Set this rank's part from the whole tensor, which every rank is given."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if hasattr(parameter, "ds_tensor"):
        # DeepSpeed's own call for the whole tensor forgets that the last rank's part may be padded.
        size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
        padded = value.new_zeros(size * torch.distributed.get_world_size())
        padded[: value.numel()] = value.flatten()
        part = padded[rank * size : (rank + 1) * size].to(parameter.ds_tensor.device)
        _set_local(parameter, key, part)
    elif key is None:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _set_local(parameter: Any, key: str | None, part: Tensor) -> None:
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if key is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, key)


def cast_masters(zero: Any, parameters: dict[str, nn.Parameter]) -> None:
    """The compute weights from the masters, as an update ends. Collective."""
    if hasattr(zero, "update_lp_params"):  # ZeRO-1 and 2: every rank casts its part, all gather
        zero.update_lp_params()
        return
    parts: list[Any] = list(parameters.values())
    for parameter in parts:
        own = parameter.ds_tensor
        own.data.copy_(own_part(parameter, None)[: own.ds_numel])
    if zero.persistent_parameters:  # those that ZeRO-3 keeps whole everywhere
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
