"""Prodigy: Adam that finds its own learning rate. Mishchenko and Defazio, 2023, arXiv 2306.06101,
Algorithm 4 (Adam version, without bias correction).

With gradient g, multiplier gamma (``learner.lr``) and the estimate d of the distance to the
solution, of which only d and r are more than elementwise:

    m <- b1 m + (1 - b1) d g                                    ``exp_avg``
    v <- b2 v + (1 - b2) d^2 g^2                                ``exp_avg_sq``
    r <- sqrt(b2) r + (1 - sqrt(b2)) gamma d^2 <g, x0 - x>      ``r``
    s <- sqrt(b2) s + (1 - sqrt(b2)) gamma d^2 g                ``s``
    x <- x - gamma d (m / (sqrt(v) + d eps) + weight_decay x)
    d <- max(d, d_coef r / |s|_1)                               for the next step

The two sums are over all weights, of which ZeRO leaves a rank a part, and under stage 3 steps even
that part in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dopsd.config import LearnerSection
from dopsd.errors import CheckpointError
from dopsd.readers import checked

START = "x0"
STATES = ("exp_avg", "exp_avg_sq", "s", START)
"""Of each weight."""


class _Scalars(BaseModel):
    """What a checkpoint holds of all weights together."""

    d: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    r: Annotated[float, Field(allow_inf_nan=False)]


class Prodigy(torch.optim.Optimizer):
    """For DeepSpeed to wrap. A rank may step its tensors one by one; the last call of an update is
    collective.

    Sums are float64 on the device of the weights, so that nothing waits for them, and that as
    little as can be depends on how the weights are cut.
    """

    def __init__(self, parameters: list[nn.Parameter], learner: LearnerSection) -> None:
        self._pieces = len(parameters)
        self._first, self._coefficient = learner.d0, learner.d_coef
        super().__init__(
            parameters,
            {
                "lr": learner.lr,
                "betas": learner.betas,
                "eps": learner.eps,
                "weight_decay": learner.weight_decay,
            },
        )
        self._device = parameters[0].device
        self.forget()

    def place(self, parts: Sequence[Tensor]) -> None:
        """Take what DeepSpeed made of the weights: tensors that an update steps on this rank."""
        self._pieces, self._device = len(parts), parts[0].device
        self.forget()

    def forget(self) -> None:
        """The estimate as it is before the first update."""
        self._d, self._r, self._rate = self._number(self._first), self._number(0), self._number(0)
        self._seen, self._sums = 0, self._number([0, 0])

    def rate(self) -> float:
        """gamma d of the last update. Waits for the device."""
        return float(self._rate)

    def scalars(self) -> dict[str, float]:
        return {"d": float(self._d), "r": float(self._r)}

    def set_scalars(self, given: Mapping[str, Any]) -> None:
        """Inverse of :meth:`scalars`. Raises CheckpointError for what is missing or no number."""
        found = checked(given, "checkpoint: Prodigy's scalars", _Scalars, CheckpointError)
        self._d, self._r = self._number(found.d), self._number(found.r)

    def _number(self, value: Any) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self._device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are there"
        for group in self.param_groups:
            for part in group["params"]:
                assert part.grad is not None, "DeepSpeed sums gradients before it steps"
                self._update(part, part.grad.to(part.dtype), group)
                self._seen += 1
        if self._seen == self._pieces:
            self._estimate(self.param_groups[0])

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state, d, lr = self.state[x], self._d, group["lr"]
        beta1, beta2 = group["betas"]
        if not state:
            state |= {"step": 0, **{name: torch.zeros_like(x) for name in STATES}}
        if state["step"] == 0:
            state[START].copy_(x)
        state["step"] += 1
        # Where ZeRO-3 pads, g is 0 and nobody knows what x is: perhaps not a number.
        dot = (g * (state[START] - x)).nansum(dtype=torch.float64)
        state["s"].lerp_(g * (lr * d.square()), 1 - math.sqrt(beta2))
        self._sums += torch.stack([dot, state["s"].abs().sum(dtype=torch.float64)])
        scaled = g * d
        state["exp_avg"].lerp_(scaled, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        change = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(d * group["eps"])
        if group["weight_decay"]:
            change.add_(x, alpha=group["weight_decay"])
        x.sub_(change.mul_(lr * d))

    def _estimate(self, group: dict[str, Any]) -> None:
        """r and d after an update of all weights."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self._sums)
        lr, beta3 = group["lr"], math.sqrt(group["betas"][1])
        self._rate = lr * self._d
        dot, size = self._sums
        self._r = beta3 * self._r + (1 - beta3) * lr * self._d.square() * dot
        # Without a gradient yet nothing is known.
        found = torch.where(size > 0, self._coefficient * self._r / size, 0.0)
        self._d = torch.maximum(self._d, found)
        self._sums, self._seen = self._number([0, 0]), 0
