"""LoKr's part of a forward pass without the whole weight that its factors stand for."""

from __future__ import annotations

from typing import Any

from peft.tuners.lokr.layer import Linear
from torch import Tensor, nn


class KroneckerLinear(Linear):  # type: ignore[misc]  # PEFT is untyped
    """PEFT's layer, which forms the weight [outputs, inputs] in every forward and keeps it for the
    backward: as many bytes as the base's own layer has, and as many operations."""

    def _get_delta_activations(  # type: ignore[override]  # PEFT's own two names of it differ
        self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(W1 (x) W2) x of x [..., inputs], as W1 X W2^T of X [..., in of W1, in of W2]."""
        left = self._left(adapter_name)
        x = self._cast_input_dtype(input, left.dtype)
        rows = x.unflatten(-1, (left.shape[1], -1))
        for factor in self._right(adapter_name):
            rows = nn.functional.linear(rows, factor)
        product: Tensor = (left @ rows).flatten(-2) * self.scaling[adapter_name]
        return product

    def _left(self, adapter: str) -> Tensor:
        if adapter in self.lokr_w1:
            whole: Tensor = self.lokr_w1[adapter]
            return whole
        product: Tensor = self.lokr_w1_a[adapter] @ self.lokr_w1_b[adapter]
        return product

    def _right(self, adapter: str) -> tuple[Tensor, ...]:
        """Its factors in the order in which they are applied."""
        if adapter in self.lokr_w2:
            return (self.lokr_w2[adapter],)
        return self.lokr_w2_b[adapter], self.lokr_w2_a[adapter]
