"""AdamW with 8-bit moments (bitsandbytes), and its moments as the fp32 tensors of a checkpoint.

bitsandbytes keeps a moment as bytes with a scale for every 256 of them, a block being wherever a
rank's part of the weights happens to be cut. A checkpoint holds plain moments, so that any number
of learners can take them; with the same cut the same bytes come back, and scales that differ by a
rounding at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dopsd.config import LearnerSection

_BLOCK = 256
_STATES = {"exp_avg": "1", "exp_avg_sq": "2"}
"""Names of AdamW's moments, and what bitsandbytes numbers them by."""


def adamw8bit(parameters: list[nn.Parameter], learner: LearnerSection) -> torch.optim.Optimizer:
    """The optimizer, for DeepSpeed to wrap; moments of fewer than 4096 weights stay in fp32."""
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters,
        lr=learner.lr,
        betas=learner.betas,
        eps=learner.eps,
        weight_decay=learner.weight_decay,
    )
    return optimizer


def is_eight_bit(optimizer: Any) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes.")


@contextmanager
def plain_moments(optimizer: Any, parts: list[Tensor], link: Any) -> Iterator[None]:
    """Inside, the state of each of ``parts`` also has ``exp_avg`` and ``exp_avg_sq`` in fp32.

    ``link()`` tells DeepSpeed that the state holds other tensors now.
    """
    from bitsandbytes.functional import dequantize_blockwise

    for part in parts:
        state = optimizer.state[part]
        for name, number in _STATES.items():
            stored = state[f"state{number}"]
            if stored.dtype == torch.uint8:
                scale, code = state[f"absmax{number}"], state[f"qmap{number}"]
                stored = dequantize_blockwise(stored, absmax=scale, code=code, blocksize=_BLOCK)
            state[name] = stored.reshape(part.shape)
    link()
    try:
        yield
    finally:
        for part in parts:
            for name in _STATES:
                del optimizer.state[part][name]
        link()


def take_plain_moments(optimizer: Any, parts: list[Tensor], step: int, link: Any) -> None:
    """Replace plain fp32 moments in the state of ``parts`` by bitsandbytes' own."""
    group = optimizer.param_groups[0]
    weights = group["params"]
    for part in parts:
        plain = optimizer.state.pop(part)
        group["params"] = [part]  # ZeRO-3 lists a part only while it is stepped
        optimizer.init_state(group, part, 0, 0)
        group["params"] = weights
        state = optimizer.state[part]
        state["step"] = step
        for name, number in _STATES.items():
            value, stored = plain[name], state[f"state{number}"]
            if stored.dtype == torch.uint8:
                value, scales = _quantized(value.flatten(), state[f"qmap{number}"])
                state[f"absmax{number}"].copy_(scales)
            stored.copy_(value.reshape(stored.shape))
    link()


def _quantized(values: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """(bytes [n], scale of each block) of fp32 ``values`` [n]; ``code`` [256] ascends.

    bitsandbytes' own function would scale a block anew whose largest value is negative: the codes
    end at 1 on one side, at -0.993 on the other.
    """
    blocks = nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    # 0.993 is a code of its own on the positive side, so that both may hold the largest value.
    negative = (blocks == -largest).any(dim=1, keepdim=True) & (largest > 0)
    scale = largest / torch.where(negative, -code[0], code[-1])
    between = (code[1:] + code[:-1]) / 2
    indices = torch.bucketize(blocks / scale.clamp(min=torch.finfo(scale.dtype).tiny), between)
    return indices.to(torch.uint8).flatten()[: len(values)], scale.flatten()
