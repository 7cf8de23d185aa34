"""Muon for the matrices inside the blocks, AdamW for the rest: twice the speed of AdamW alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK_PARTS = (".attention.", ".feed_forward.", ".self_attn.", ".mlp.", ".attn.")

# Coefficients of the quintic Newton-Schulz iteration, from Muon's reference implementation.
_A, _B, _C = 3.4445, -4.775, 2.0315


class Muon(torch.optim.Optimizer):
    """Momentum whose update matrix is orthogonalised (Jordan et al., 2024).

    Matrices of one shape are orthogonalised as one batch. Updates are scaled to the size of an
    AdamW step, so that both optimizers share a learning rate.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.01):
        defaults = {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay, "iterations": 5}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shape = (min(param.shape), max(param.shape))
                    by_shape.setdefault(shape, []).append(param)
            for shape, params in by_shape.items():
                self._step_batch(group, shape, params)

    def _step_batch(
        self, group: dict[str, Any], shape: tuple[int, int], params: list[Tensor]
    ) -> None:
        updates = []
        for param in params:
            state = self.state[param]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(param)
            average = state["momentum"]
            assert param.grad is not None
            average.lerp_(param.grad, 1 - group["momentum"])
            update = param.grad.lerp(average, group["momentum"])
            updates.append(update.T if _tall(update) else update)
        batch = torch.stack(updates)
        batch = (batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
        for _ in range(group["iterations"]):
            gram = batch @ batch.mT
            batch = _A * batch + (_B * gram + _C * gram @ gram) @ batch
        batch = batch.float() * (0.2 * math.sqrt(shape[1]))
        for param, update in zip(params, batch, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update.T if _tall(param) else update, alpha=-group["lr"])


def _tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


class Optimizers:
    """The pair of optimizers over named parameters, with one learning rate and one state."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float):
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, param in named:
            is_block = param.ndim == 2 and any(part in name for part in _BLOCK_PARTS)
            (matrices if is_block and "t_embedder" not in name else others).append(param)
        self.params = matrices + others
        self.lr = lr
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
            Muon(matrices, lr),
        ]

    def step(self, scale: float, clip: float = 1.0) -> None:
        """Clip the gradients, step at ``scale`` times the learning rate, clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.params, clip)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * scale
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of both."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what ``state_dict`` returned."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


class Average:
    """Exponential moving average of parameters, faster at first."""

    def __init__(self, params: list[nn.Parameter], decay: float):
        self.params, self.decay = params, decay
        self.values = [param.detach().clone() for param in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move toward the parameters after ``step`` updates (counted from 1)."""
        decay = min(self.decay, step / (step + 20))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.params], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the parameters; a second call undoes it."""
        for param, value in zip(self.params, self.values, strict=True):
            kept = param.detach().clone()
            param.copy_(value)
            value.copy_(kept)
