"""What the learner does, written out on one process without DeepSpeed."""

from __future__ import annotations

import torch

from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.records import Context
from tests.learner.zero.zero_rank import STATES, batches, case_config


class PlainLoop:
    """K-state loss, one backward and clip; what steps ``weights`` is the test's."""

    def __init__(self, base: str) -> None:
        self.config = case_config(base, "zero1", "float32")
        self.family = FAMILIES["z_image"](base)
        self.transformer = self.family.load_transformer(torch.float32, "cpu")
        matched = resolve_targets(self.transformer, "default", self.family.lora_targets)
        inject(self.transformer, matched, 4, 8, 0)
        self.weights = adapter_parameters(self.transformer, STUDENT)

    def clipped_gradients(self, step: int) -> tuple[float, float]:
        """(loss, gradient norm before the clip) of ``step``; the gradients are the weights'."""
        made = batches(step)
        samples = sum(len(batch.info) for batch in made)
        loss = torch.zeros(())
        for batch in made:
            for k in range(STATES):
                sigma = batch.sigmas[k].expand(len(batch.info))
                velocity = self.family.velocity(
                    self.transformer, batch.states[k], sigma, Context(batch.student.tensors)
                )
                error = (velocity - batch.target_velocity[k]).square().mean(dim=(1, 2, 3))
                loss = loss + batch.weight[k] * error.sum() / (samples * STATES)
        for weight in self.weights.values():
            weight.grad = None
        loss.backward()
        clip = self.config.learner.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), clip)
        return float(loss.detach()), float(norm)
