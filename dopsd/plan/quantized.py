"""Bytes of a base whose blocks are quantised (`model.quantize`), and of an encoder."""

from __future__ import annotations

from dopsd.plan.architecture import Architecture
from dopsd.plan.encoder import Encoder

_BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of a weight; of nf4 with a scale of one byte for 64 of them, and one of four for 256 scales."""
_SCALE = 4
"""Of an output of a layer in fp8 and int8."""
_KEPT = ("fp8", "int8")
"""Whose layers keep their weights in the compute dtype from forward to backward; bitsandbytes
converts them again."""


def base_bytes(model: Architecture, quantize: str, size: int) -> float:
    """Of a frozen transformer; ``size``: bytes of a number in the compute dtype."""
    if quantize == "none":
        return float(model.weights * size)
    layers = [(stack.count, layer) for stack in model.stacks for layer in stack.linears]
    inside = sum(count * layer.inputs * layer.outputs for count, layer in layers)
    scales = sum(count * layer.outputs for count, layer in layers) * _SCALE
    kept = (model.weights - inside) * size
    return kept + inside * _BYTES[quantize] + (scales if quantize in _KEPT else 0)


def encoder_bytes(encoder: Encoder, quantize: str, size: int) -> float:
    """Of a text encoder or VLM: its language model's layers are quantised, nothing else."""
    if quantize == "none":
        return float(encoder.weights * size)
    kept = (encoder.embeddings + encoder.vision) * size
    return kept + encoder.language * _BYTES[quantize]


def converted_bytes(
    model: Architecture, quantize: str, size: int, learns: bool, checkpointing: int
) -> float:
    """Most of weights that are in the compute dtype at once, beside the quantised ones."""
    if quantize == "none":
        return 0.0
    blocks = [
        (stack.count, [layer.inputs * layer.outputs for layer in stack.linears])
        for stack in model.stacks
    ]
    if not learns or quantize not in _KEPT:
        return float(max(max(layers) for _, layers in blocks) * size)
    whole = sum(count * sum(layers) for count, layers in blocks) * size
    again = model.recomputed(checkpointing) / model.blocks
    one = max(sum(layers) for _, layers in blocks) * size if checkpointing else 0
    return (1.0 - again) * whole + one
