"""DeepSpeed ZeRO behind four calls: forward, backward, step, gather."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dopsd.config import LearnerSection, RunConfig
from dopsd.config.recipes import preset_file
from dopsd.errors import CheckpointError, ConfigError
from dopsd.learner.gradient_check import GradientCheck
from dopsd.learner.student import Student
from dopsd.learner.zero.adamw8bit import adamw8bit
from dopsd.learner.zero.deepspeed_private import flat_parts, set_from_whole
from dopsd.learner.zero.extensions import build_needed
from dopsd.learner.zero.flat_weights import flat_sharded, flat_whole, layout_of
from dopsd.learner.zero.optimizer_state import (
    AVERAGE,
    forget_updates,
    own_nonfinite,
    set_average,
    set_optimizer_state,
    start_average,
)
from dopsd.learner.zero.prodigy import Prodigy
from dopsd.models.lora.layers import BASE, STUDENT, TEACHER, activate, bind_parameters
from dopsd.policy.flat import FlatLayout
from dopsd.readers import Object, checked, read_json

_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
)
"""Keys that follow from the run config and may not stand in a preset."""


class _Zero(BaseModel):
    """What is read of ``zero_optimization``; DeepSpeed checks the rest."""

    stage: Literal[1, 2, 3]
    offload_optimizer: dict[str, Any] | None = None
    offload_param: dict[str, Any] | None = None


class _Preset(BaseModel):
    zero_optimization: _Zero


def read_preset(name: str) -> dict[str, Any]:
    """A DeepSpeed JSON file by path, or one of configs/deepspeed/ by name.

    Raises ConfigError for a missing file, broken JSON, another stage than 1, 2 or 3, or a key that
    the run config owns.
    """
    file = preset_file(name)
    where = f"learner.deepspeed: {file}"
    preset = read_json(str(file), Object, ConfigError, where)
    checked(preset, where, _Preset, ConfigError)
    if owned := [key for key in _OWNED if key in preset]:
        raise ConfigError(
            f"learner.deepspeed: {file} sets {owned[0]}, allowed: in the run config only"
        )
    return preset


def preset_stage(preset: dict[str, Any]) -> int:
    """The ZeRO stage of a preset or of a whole DeepSpeed config."""
    return int(preset.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(preset: dict[str, Any]) -> bool:
    """Whether a preset keeps the optimizer's state off the GPU."""
    return "offload_optimizer" in preset.get("zero_optimization", {})


def engine_config(config: RunConfig, preset: dict[str, Any], accumulation: int) -> dict[str, Any]:
    """The whole DeepSpeed config. ``accumulation``: backward passes of a step on one rank."""
    learner = config.learner
    optimizer: dict[str, Any] = {"zero_allow_untested_optimizer": True}
    if learner.optimizer == "adamw":
        optimizer = {"optimizer": _adamw(learner, offloads_optimizer(preset))}
    return {
        **preset,
        "train_micro_batch_size_per_gpu": learner.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": learner.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        **optimizer,
        "steps_per_print": 10**9,
    }


def _adamw(learner: LearnerSection, offloads: bool) -> dict[str, Any]:
    return {
        "type": "AdamW",
        "params": {
            "lr": learner.lr,
            "betas": list(learner.betas),
            "eps": learner.eps,
            "weight_decay": learner.weight_decay,
            # The fused kernels want a CUDA toolkit; optimizer offload needs DeepSpeed's own.
            "torch_adam": not offloads,
        },
    }


class ZeroEngine:
    """A student under DeepSpeed. Backward passes accumulate; the last of a step updates."""

    def __init__(self, student: Student, config: dict[str, Any], learner: LearnerSection) -> None:
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        import deepspeed

        self._deepspeed = deepspeed
        self.student = student
        build_needed(config)
        if preset_stage(config) == 3:
            # Cut up where it stands, on the CPU: a base that fits no GPU never has to be on one.
            deepspeed.zero.Init(module=student, config_dict_or_path=config)
        trainable = [p for p in student.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=student,
            model_parameters=trainable,
            config=config,
            # What DeepSpeed makes from its config it makes itself.
            optimizer=_made(trainable, learner),
        )
        self.zero = self.engine.optimizer
        """DeepSpeed's ZeRO optimizer, whose state ``optimizer_state.py`` knows."""
        if isinstance(self.zero.optimizer, Prodigy):
            self.zero.optimizer.place(flat_parts(self.zero))
        self.stage = self.engine.zero_optimization_stage()
        self.rank, self.world = int(self.engine.global_rank), int(self.engine.world_size)
        self._check: GradientCheck | None = GradientCheck(self.trained())
        if student.start:  # the masters would begin as what the compute dtype leaves of it
            self.restore(student.start, 0, {}, {})
            student.start = {}
        self._full_rows = int(config["train_micro_batch_size_per_gpu"])

    def velocity(self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]) -> Tensor:
        """Velocity [B, C, h, w] float32 under the active adapter.

        ZeRO-3 follows every picture of a batch on its way through the modules, and ranks whose
        batches differ in size wait for each other forever: there a remainder is filled up with
        copies of its last row, whose velocities are dropped.
        """
        rows = len(latents)
        missing = self._full_rows - rows if self.stage == 3 else 0
        if missing > 0:
            latents, sigma = _fill(latents, missing), _fill(sigma, missing)
            context = {name: _fill(tensor, missing) for name, tensor in context.items()}
        result: Tensor = self.engine(latents, sigma, context)
        return result[:rows]

    def backward(self, loss: Tensor) -> bool:
        """Accumulate d(loss)/d(weights), SUMMED over ranks; True when this updated the weights.

        DeepSpeed averages over ranks and divides by the accumulation; both are undone here, so
        that the loss is normalised once, by the samples of the global batch. Raises ModelError in
        the first step when a trained tensor got no gradient, before anything is updated.
        """
        self.engine.backward(loss * self.world, scale_wrt_gas=False)
        boundary = bool(self.engine.is_gradient_accumulation_boundary())
        if boundary and self._check is not None:
            self._check.finish()
            self._check = None
        self.engine.step()
        return boundary

    def set_lr(self, lr: float) -> None:
        for group in self.zero.param_groups:
            group["lr"] = lr

    def found_rate(self) -> float | None:
        """The learning rate of the last update, of an optimizer that finds its own."""
        optimizer = self.zero.optimizer
        return optimizer.rate() if isinstance(optimizer, Prodigy) else None

    def grad_norm(self) -> float:
        """Global gradient norm of the last update, before clipping."""
        return float(self.engine.get_global_grad_norm() or 0.0)

    def skipped(self) -> bool:
        """Whether the last update was left out because its gradients were not finite."""
        return bool(self.zero.overflow)

    @torch.no_grad()
    def nonfinite(self) -> str:
        """A tensor of weights or optimizer that holds infinity or nan on any rank, in words; empty
        when all are finite. Collective."""
        own = own_nonfinite(self.zero, self.trained())
        if not any(self.sum_over_ranks([float(bool(own))])):
            return ""
        return min(filter(None, self.gather(own)))

    @torch.no_grad()
    def restore(
        self,
        weights: dict[str, Tensor],
        updates: int,
        moments: dict[str, Tensor],
        scalars: dict[str, float],
    ) -> None:
        """Resume where another engine stood: fp32 weights of the student and the optimizer's state.

        Collective. Raises CheckpointError unless the weights are those of the same modules, and the
        state is whole.
        """
        parameters = self.trained()
        for name in parameters.keys() ^ weights.keys():
            missing = name in parameters
            raise CheckpointError(
                f"student weights: {name} is {'missing' if missing else 'none of this model'}"
            )
        for name, parameter in parameters.items():
            set_from_whole(parameter, None, weights[name])
        set_optimizer_state(self.zero, parameters, updates, moments, scalars)
        with self.gathered(list(parameters.values())):
            bind_parameters(parameters, weights)

    @torch.no_grad()
    def reset(self, weights: dict[str, Tensor]) -> None:
        """Be as an engine that begins with these fp32 weights of the student and has trained
        nothing. An average that was kept is gone too: whoever trains next starts its own. Only
        between two optimizer steps. Collective."""
        self.restore(weights, 0, {}, {})
        forget_updates(self.zero)

    def trained(self, adapter: str = STUDENT) -> dict[str, nn.Parameter]:
        """{name: parameter} of what is trained, or of the teacher's counterparts."""
        return self.student.trained.parameters(self.student.transformer, adapter)

    def start_average(self) -> None:
        """Keep an fp32 average of the masters beside AdamW's moments, sharded as they are; it
        begins at the weights as they are."""
        start_average(self.zero)

    @torch.no_grad()
    def update_average(self, weight: float) -> None:
        """average <- average + weight * (masters - average), of this rank's part, in fp32."""
        for flat in flat_parts(self.zero):
            self.zero.optimizer.state[flat][AVERAGE].lerp_(flat.detach(), weight)

    def layout(self) -> FlatLayout:
        """How the trained tensors lie in a flat one."""
        return layout_of(self.trained())

    def flat_student(self, names: Iterable[str] | None = None) -> Tensor:
        """The trained tensors, or those of ``names``, [numel] in the compute dtype on the device.
        Under ZeRO-3 one collective, whose result is rank 0's alone."""
        if self.stage < 3:
            return flat_whole(self._some(names))
        return flat_sharded(self._some(names), None, self.engine.device, self.world)

    def flat_average(self, names: Iterable[str] | None = None, everywhere: bool = False) -> Tensor:
        """Their average, the same, on rank 0 or ``everywhere``; one collective."""
        device = self.engine.device
        return flat_sharded(self._some(names), AVERAGE, device, self.world, everywhere)

    def _some(self, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
        trained = self.trained()
        return trained if names is None else {name: trained[name] for name in names}

    def full_average(self) -> dict[str, Tensor]:
        """The average, fp32, whole, on the CPU. Collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            name: safe_get_full_optimizer_state(parameter, AVERAGE).detach().cpu().clone()
            for name, parameter in self.trained().items()
        }

    @torch.no_grad()
    def set_average(self, average: dict[str, Tensor]) -> None:
        """Inverse of :meth:`full_average`. Collective."""
        set_average(self.trained(), average)

    def gather(self, value: Any) -> list[Any]:
        """A small value of every rank, by rank. Collective."""
        values = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """The sum of each value over all ranks, in float64. Collective."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def full_weights(self, adapter: str) -> dict[str, Tensor]:
        """fp32 master weights of an adapter, gathered from all ranks, on the CPU. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.trained(adapter).items():
            full = safe_get_full_fp32_param(parameter)
            assert full is not None, f"{name} is not managed by ZeRO"
            weights[name] = full.detach().float().cpu().clone()
        return weights

    @torch.no_grad()
    def write_teacher(self) -> None:
        """The frozen teacher adapter takes the average. Collective."""
        weights = self.layout().views(self.flat_average(everywhere=True))
        parameters = self.trained(TEACHER)
        with self.gathered(list(parameters.values())):
            bind_parameters(parameters, weights)

    @torch.no_grad()
    def teacher_velocity(
        self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]
    ) -> Tensor:
        """The teacher adapter's velocity on the same base; the student is active afterwards."""
        return self._velocity_under(TEACHER, latents, sigma, context)

    @torch.no_grad()
    def base_velocity(self, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]) -> Tensor:
        """The base's velocity, without an adapter; the student is active afterwards."""
        return self._velocity_under(BASE, latents, sigma, context)

    def _velocity_under(
        self, adapter: str, latents: Tensor, sigma: Tensor, context: dict[str, Tensor]
    ) -> Tensor:
        activate(self.student.transformer, adapter)
        try:
            return self.velocity(latents, sigma, context)
        finally:
            activate(self.student.transformer, STUDENT)

    def gathered(self, parameters: list[nn.Parameter]) -> Any:
        """A context in which ``parameters`` are whole; rank 0's changes stay."""
        if self.stage < 3:
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def _made(trainable: list[nn.Parameter], learner: LearnerSection) -> torch.optim.Optimizer | None:
    """The optimizer, but for the one that DeepSpeed makes itself."""
    make = {"adamw8bit": adamw8bit, "prodigy": Prodigy}.get(learner.optimizer)
    return None if make is None else make(trainable, learner)


def _fill(tensor: Tensor, missing: int) -> Tensor:
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
