"""FLOPs and memory of one velocity of a transformer: a forward, or a forward and a backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dopsd.plan.architecture import Architecture, Linear, Stack

_FORWARD, _BACKWARD = 4, 10
"""FLOPs of attention for each pair of tokens and unit of width: two products forward, five backward
(which computes the scores again), as of flash attention."""


@dataclass(frozen=True)
class Shape:
    """What a velocity is computed of: ``rows`` samples of ``image`` and ``text`` tokens each;
    reference pictures are image tokens too."""

    rows: int
    image: int
    text: int

    def tokens(self, over: str) -> int:
        """Of all rows; ``sample``: the rows themselves."""
        counts = {"image": self.image, "text": self.text, "both": self.image + self.text}
        return self.rows * counts.get(over, 1)


@dataclass(frozen=True)
class Adapter:
    """What trains: a LoRA of ``rank`` on ``targets``, or with rank 0 all weights."""

    targets: list[str] | str
    rank: int


@dataclass(frozen=True)
class Bytes:
    """Of activations, for each token and unit of the model's width: from shallow models of the real
    classes and widths, traced with fake tensors (tests/plan/trace.py). tests/plan/test_gpu_table.py
    holds the sums to figures traced at full depth, test_measured.py to what an allocator saw."""

    forward: float
    """Most that is alive at once in a forward without gradients."""
    stored: dict[str, float]
    """What a block of each kind keeps for its backward."""
    edge: float
    """What is alive beside the stored when the backward begins."""
    recomputed: float
    """What is alive beside the blocks' inputs while one block is computed again."""


_ACTIVATIONS = {
    ("z_image", 2): Bytes(31.7, {"layer": 69.4}, 17.4, 86.0),
    ("z_image", 4): Bytes(63.0, {"layer": 90.8}, 49.9, 111.6),
    ("flux2_klein", 2): Bytes(44.0, {"double": 48.1, "single": 40.1}, 56.5, 78.6),
    ("flux2_klein", 4): Bytes(85.1, {"double": 88.1, "single": 64.1}, 112.5, 140.6),
}
"""By family and bytes of a number in the compute dtype."""


def flops(
    model: Architecture, shape: Shape, adapter: Adapter, learns: bool, checkpointing: bool = False
) -> float:
    """Of a forward, and where it ``learns`` of the backward and of what is computed again."""
    forward = attention = 0.0
    for stack in model.stacks:
        attention += stack.count * _pairs(stack, shape) * model.width
        forward += stack.count * sum(_product(layer, shape) for layer in stack.linears)
    outside = sum(_product(layer, shape) for layer in model.outside)
    down_up = 0.0
    if adapter.rank:
        for stack, layer in model.adapted(adapter.targets):
            pair = layer.inputs + layer.outputs
            down_up += stack.count * 2.0 * shape.tokens(layer.over) * adapter.rank * pair
    once = forward + outside + down_up + _FORWARD * attention
    if not learns:
        return once
    # Of a frozen layer the backward computes the gradient of its input alone, of a LoRA's layers
    # and of trained weights that of the weights as well.
    weights = down_up if adapter.rank else forward + outside
    backward = forward + outside + down_up + weights + _BACKWARD * attention
    again = forward + down_up + _FORWARD * attention if checkpointing else 0.0
    return once + backward + again


def activations(
    model: Architecture,
    shape: Shape,
    adapter: Adapter,
    size: int,
    learns: bool,
    checkpointing: bool = False,
) -> float:
    """Most bytes that are alive at once beside weights and inputs, the gradients of a LoRA
    included; ``size``: bytes of a number in the compute dtype."""
    cost = _ACTIVATIONS[model.family, size]
    whole = shape.tokens("both") * model.width
    if not learns:
        return cost.forward * whole
    if checkpointing:
        inputs = sum(s.count * size * shape.tokens(s.over) for s in model.stacks) * model.width
        gradients = size * model.lora_weights(adapter.targets, adapter.rank) if adapter.rank else 0
        # The first block that is computed again finds all inputs, the last one all gradients.
        return max(inputs, gradients) + cost.recomputed * whole
    stored = cost.edge * whole
    for stack in model.stacks:
        tokens = shape.tokens(stack.over)
        stored += stack.count * cost.stored[stack.kind] * tokens * model.width
    if adapter.rank:
        for stack, layer in model.adapted(adapter.targets):
            stored += stack.count * size * shape.tokens(layer.over) * adapter.rank
    return stored


def filled(tokens: float, multiple: int) -> int:
    """``tokens`` as the transformer sees them."""
    return math.ceil(tokens / multiple) * multiple


def _product(layer: Linear, shape: Shape) -> float:
    return 2.0 * shape.tokens(layer.over) * layer.inputs * layer.outputs


def _pairs(stack: Stack, shape: Shape) -> float:
    return float(shape.rows) * (shape.tokens(stack.over) / shape.rows) ** 2
