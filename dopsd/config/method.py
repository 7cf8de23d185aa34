"""The section `method` of the run config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dopsd.config.base import Fraction, Positive, SamplerSteps, Section


class MethodSection(Section):
    """The algorithm: objective, teacher, schedule and weighting."""

    objective: Literal["dopsd", "sft", "off_policy", "sft_on_teacher"] = Field(
        "dopsd",
        description="`dopsd`: the student's own states, the teacher's velocities there. The "
        "others are baselines. `sft`: noised targets, their analytic velocity. `off_policy`: "
        "the teacher's velocities at `off_policy_states`. `sft_on_teacher`: sft on the "
        "teacher's drawings.",
    )
    off_policy_states: Literal["noised", "teacher"] = Field(
        "noised",
        description="States of `objective: off_policy`: noised targets, or the teacher's own "
        "trajectory.",
    )
    teacher: Literal["ema", "frozen", "live"] = Field(
        "ema",
        description="The teacher's weights: an EMA of the student, the base, or the student.",
    )
    steps: SamplerSteps = Field(4, description="K, the states of a training rollout.")
    sigmas: list[float] | None = Field(
        None,
        description="Override of the K rollout sigmas (descending from 1, without the last "
        "0). Default: from the pipeline's own scheduler.",
    )
    weighting: Literal["x0", "velocity"] = Field(
        "x0", description="w_k: sigma_k^2 (the authors' scripts) or 1 (the paper's Eq. 7)."
    )
    ema_decay: Fraction = Field(0.9999, description="Decay of `teacher: ema`, per optimizer step.")
    teacher_sync_every: Positive = Field(
        1,
        description="Of `adapters: full`: N, the teacher is published every N optimizer steps; "
        "version v of the student goes with version v - v % N of the teacher.",
    )

    @property
    def teacher_decay(self) -> float:
        """EMA decay of the teacher: 1 keeps the base, 0 follows the student."""
        return {"ema": self.ema_decay, "frozen": 1.0, "live": 0.0}[self.teacher]

    @property
    def needs_targets(self) -> bool:
        """Whether states are made of the images' own latents."""
        noised = self.objective == "off_policy" and self.off_policy_states == "noised"
        return noised or self.objective == "sft"
