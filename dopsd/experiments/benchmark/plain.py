"""The method as a plain loop in one process: what the trainer is measured against.

As the authors' scripts go about it: encoders and both language models stay resident and encode in
the loop, the graphs of all states live until one backward, and one process does everything.
``python -m dopsd.experiments.benchmark.plain CONFIG`` trains the steps of a run config on shards
that are there, with the run's own samples, captions and noise, and appends a line for each step to
``metrics.jsonl`` in the run folder, as a run does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopsd.config import RunConfig, load_config
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.manifest import load_manifest
from dopsd.data.planning.plan import MicroBatch
from dopsd.data.read import RowGroups, read_micro_batch, samples_of
from dopsd.data.run_data import plan_of, read_spec
from dopsd.learner.learner import learning_rate
from dopsd.learner.student import build_student
from dopsd.method.ema import Ema
from dopsd.method.noise import batch_noise
from dopsd.method.objective import state_loss, state_weights
from dopsd.method.schedule import euler_step
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.layers import STUDENT, TEACHER, activate
from dopsd.models.sampling import training_sigmas
from dopsd.ray_cluster.process import peak_memory_mb, set_up
from dopsd.records import Context, noise_ids
from dopsd.run_folder.files import METRICS_FILE


class PlainLoop:
    """One process, one optimizer, one backward a micro-batch."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config, self.device = config, device
        model = config.model
        self.family = FAMILIES[model.family](model.base, model.revision)
        self.encoder = TrainingEncoderFactory(config, device)()
        self.student = build_student(config, self.family, device, with_teacher=True)
        self.trained = self._parameters(STUDENT)
        self.teacher = self._parameters(TEACHER)
        self.ema = Ema(dict(self.trained), config.method.teacher_decay)
        self.plan = plan_of(config, load_manifest(config.shards))
        self.groups = RowGroups(config.shards, read_spec(config))
        learner = config.learner
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()),
            lr=learner.lr,
            betas=learner.betas,
            eps=learner.eps,
            weight_decay=learner.weight_decay,
        )

    def step(self, step: int) -> dict[str, Any]:
        """Train one step; its metrics."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.learner)
        loss, samples = 0.0, 0
        for batch in self.plan.step(step).micro_batches:
            part = self._loss(batch)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            samples += len(batch.rows)
        parameters = list(self.trained.values())
        torch.nn.utils.clip_grad_norm_(parameters, self.config.learner.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._follow()
        return {
            "step": step,
            "loss": loss,
            "samples": samples,
            "wall_seconds": time.perf_counter() - began,
            "plain_peak_memory_mb": peak_memory_mb(),
        }

    def _loss(self, batch: MicroBatch) -> Tensor:
        """The micro-batch's part of the step's loss, with the graphs of all its states."""
        values = read_micro_batch(batch, self.groups, self.plan.seed)
        student, teacher, _ = self.encoder.encode(samples_of(values))
        assert teacher is not None, "the objective has a teacher"
        height, width = values["height"], values["width"]
        sigmas = training_sigmas(self.config, self.family, height, width).to(self.device)
        shape = self.family.latent_shape(height, width)
        ids = noise_ids(values["sample_ids"], batch.repeats)
        state = batch_noise(self.plan.seed, batch.step, ids, shape).to(self.device)
        weights = state_weights(sigmas[:-1], self.config.method.weighting)
        losses = []
        for k, weight in enumerate(weights):
            # As in the authors' loop a gradient is asked for at the latents too.
            state = state.detach().requires_grad_()
            velocity = self._velocity(STUDENT, state, sigmas[k], student)
            with torch.no_grad():
                target = self._velocity(TEACHER, state, sigmas[k], teacher)
            losses.append(state_loss(velocity, target, weight).sum())
            state = euler_step(state, velocity, sigmas[k], sigmas[k + 1])
        return torch.stack(losses).sum() / (batch.step_samples * len(weights))

    def _velocity(self, adapter: str, state: Tensor, sigma: Tensor, context: Context) -> Tensor:
        activate(self.student.transformer, adapter)
        moved = context.to(self.device, DTYPES[self.config.model.dtype])
        return self.student(state, sigma.expand(len(state)), moved.tensors)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self) -> None:
        self.ema.update(dict(self.trained))
        for name, parameter in self.teacher.items():
            parameter.copy_(self.ema.tensors[name])

    def _parameters(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        return self.student.trained.parameters(self.student.transformer, adapter)


def main() -> None:
    config = load_config(sys.argv[1])
    set_up(config.device)
    loop, path = PlainLoop(config, config.device), Path(config.run.folder) / METRICS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for step in range(config.learner.steps):
            print(json.dumps(loop.step(step)), file=lines, flush=True)


if __name__ == "__main__":
    main()
