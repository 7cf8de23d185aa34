"""FLOPs and memory of one velocity of a transformer: a forward, or a forward and a backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dopsd.models.lora.factors import Factors
from dopsd.plan.adapter import cost_of
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
    """What trains: the adapter of ``factors`` on ``targets``, or without all weights."""

    targets: list[str] | str
    factors: Factors | None


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
    ("krea2", 2): Bytes(29.9, {"layer": 50.4, "layerwise": 249.8, "refiner": 20.8}, 24.2, 66.3),
    ("krea2", 4): Bytes(59.3, {"layer": 87.8, "layerwise": 449.8, "refiner": 37.5}, 25.7, 109.8),
    ("qwen_image", 2): Bytes(42.2, {"layer": 62.1}, 10.2, 74.6),
    ("qwen_image", 4): Bytes(84.1, {"layer": 108.1}, 20.1, 132.8),
    ("flux2_klein", 2): Bytes(44.0, {"double": 48.1, "single": 40.1}, 56.5, 78.6),
    ("flux2_klein", 4): Bytes(85.1, {"double": 88.1, "single": 64.1}, 112.5, 140.6),
}
"""By family and bytes of a number in the compute dtype."""


def flops(
    model: Architecture, shape: Shape, adapter: Adapter, learns: bool, checkpointing: int = 0
) -> float:
    """Of a forward, and where it ``learns`` of the backward and of what is computed again, which
    is every ``checkpointing``-th block (0: none)."""
    forward = attention = 0.0
    for stack in model.stacks:
        attention += stack.count * _pairs(stack, shape) * model.width
        products = sum(_product(layer, shape) for layer in stack.linears)
        forward += stack.count * stack.times * products
    outside = sum(_product(layer, shape) for layer in model.outside)
    down_up = 0.0
    if adapter.factors:
        for stack, layer in model.adapted(adapter.targets):
            rows = stack.times * shape.tokens(layer.over)
            cost = cost_of(adapter.factors, layer)
            down_up += stack.count * 2.0 * (rows * cost.row + cost.once)
    once = forward + outside + down_up + _FORWARD * attention
    if not learns:
        return once
    # Of a frozen layer the backward computes the gradient of its input alone, of a LoRA's layers
    # and of trained weights that of the weights as well.
    weights = down_up if adapter.factors else forward + outside
    backward = forward + outside + down_up + weights + _BACKWARD * attention
    share = model.recomputed(checkpointing) / model.blocks
    again = share * (forward + down_up + _FORWARD * attention)
    return once + backward + again


def activations(
    model: Architecture,
    shape: Shape,
    adapter: Adapter,
    size: int,
    learns: bool,
    checkpointing: int = 0,
) -> float:
    """Most bytes that are alive at once beside weights and inputs, the gradients of a LoRA
    included; ``size``: bytes of a number in the compute dtype."""
    cost = _ACTIVATIONS[model.family, size]
    whole = shape.tokens("both") * model.width
    if not learns:
        return cost.forward * whole + size * _largest(model, adapter, 3)
    again = model.recomputed(checkpointing) / model.blocks
    inputs = kept = 0.0
    for stack in model.stacks:
        tokens = stack.count * shape.tokens(stack.over) * model.width
        share = again if stack.repeated else 0.0
        inputs += share * size * tokens
        kept += (1.0 - share) * cost.stored[stack.kind] * tokens
    if adapter.factors:
        for stack, layer in model.adapted(adapter.targets):
            share = again if stack.repeated else 0.0
            rows = stack.count * stack.times * shape.tokens(layer.over)
            own = cost_of(adapter.factors, layer)
            kept += (1.0 - share) * size * (rows * own.kept + stack.count * own.kept_once)
    if not checkpointing:
        return kept + cost.edge * whole
    gradients = 0
    if adapter.factors:
        gradients = size * model.lora_weights(adapter.targets, adapter.factors)
    # The first block that is computed again finds all that is kept, the last one all gradients.
    block = cost.recomputed * whole + _block(model, shape, adapter, size)
    return max(kept + inputs, gradients) + block


def _largest(model: Architecture, adapter: Adapter, copies: int) -> float:
    """Numbers of the whole weights that a LoHa forms for one layer, and of what they are made."""
    if adapter.factors is None:
        return 0.0
    layers = [cost_of(adapter.factors, layer) for _, layer in model.adapted(adapter.targets)]
    return copies * max((cost.kept_once for cost in layers), default=0.0)


def _block(model: Architecture, shape: Shape, adapter: Adapter, size: int) -> float:
    """Bytes that LoKr and LoHa keep of one block that is computed again; a LoRA's are among those
    that were traced."""
    if adapter.factors is None or adapter.factors.kind == "lora":
        return 0.0
    blocks: dict[int, float] = {}
    for stack, layer in model.adapted(adapter.targets):
        own = cost_of(adapter.factors, layer)
        rows = stack.times * shape.tokens(layer.over)
        blocks[id(stack)] = blocks.get(id(stack), 0.0) + rows * own.kept + own.kept_once
    return size * max(blocks.values(), default=0.0) + size * _largest(model, adapter, 2)


def filled(tokens: float, multiple: int) -> int:
    """``tokens`` as the transformer sees them."""
    return math.ceil(tokens / multiple) * multiple


def _product(layer: Linear, shape: Shape) -> float:
    return 2.0 * shape.tokens(layer.over) * layer.inputs * layer.outputs


def _pairs(stack: Stack, shape: Shape) -> float:
    return float(shape.rows) * (shape.tokens(stack.over) / shape.rows) ** 2
