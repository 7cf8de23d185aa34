"""What an adapter adds to a layer's forward pass, as the learner computes it."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.models.lora.factors import Factors, kronecker_sides
from dopsd.plan.architecture import Linear


@dataclass(frozen=True)
class AdapterCost:
    """Of one layer: products (two FLOPs each) and numbers kept for the backward."""

    row: float
    """Products for each token."""
    once: float
    """Products for each call."""
    kept: float
    """Numbers for each token, beside the layer's input."""
    kept_once: float
    """Numbers for each call."""


def cost_of(factors: Factors, layer: Linear) -> AdapterCost:
    """LoRA and LoKr work on tokens, LoHa forms the whole weight first."""
    inputs, outputs, rank = layer.inputs, layer.outputs, factors.rank
    if factors.kind == "loha":
        whole = float(inputs * outputs)
        return AdapterCost(whole, 2 * rank * whole, 0.0, whole)
    if factors.kind == "lora":
        return AdapterCost(rank * (inputs + outputs), 0.0, rank, 0.0)
    (left_out, right_out), (left_in, right_in) = (
        kronecker_sides(size, factors.factor) for size in (outputs, inputs)
    )
    mixed = left_in * right_out
    low = "lokr_w2_a" in factors.shapes(outputs, inputs)
    large = left_in * rank * (right_in + right_out) if low else mixed * right_in
    # Of what the large factor gives, its transposed copy as well, which the small one multiplies.
    return AdapterCost(large + left_out * mixed, 0.0, 2 * mixed + left_in * rank * low, 0.0)
