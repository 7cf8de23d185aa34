"""The sections of the run config that say who does the work, and how long it may take."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dopsd.config.base import MOST_SECONDS, NonNegative, Positive, Quantize, Seconds, Section, Whole
from dopsd.config.messages import one_line
from dopsd.errors import ConfigError

_LONGEST_PAUSE = 60.0
SMALLEST_SHARE = 1e-4
"""Of a CPU or GPU: Ray counts in this unit."""
Beta = Annotated[float, Field(ge=0, lt=1)]


def _countable(share: float) -> float:
    if 0 < share < SMALLEST_SHARE:
        raise PydanticCustomError("share", f"0 or at least {SMALLEST_SHARE:g}")
    return share


def _whole_beyond_one(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise PydanticCustomError("share", "a part of one GPU, or whole ones")
    return gpus


Share = Annotated[float, Field(ge=0, le=10_000), AfterValidator(_countable)]
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_NAME}")
_LABEL_CHOICE = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def _label_key(key: str) -> str:
    if not _LABEL_KEY.fullmatch(key):
        raise PydanticCustomError("label", "a label of Ray, such as ray.io/market-type")
    return key


def _label_choice(choice: str) -> str:
    if not _LABEL_CHOICE.fullmatch(choice):
        raise PydanticCustomError("label", "a value, in(a, b), !value or !in(a, b)")
    return choice


Labels = dict[
    Annotated[str, AfterValidator(_label_key)], Annotated[str, AfterValidator(_label_choice)]
]


class RoleSection(Section):
    """Workers of a role and what each of them takes."""

    workers: Positive = Field(1, description="Actors of this role.")
    cpus: Share = Field(1.0, description="CPUs of each worker.")
    gpus: Annotated[Share, AfterValidator(_whole_beyond_one)] | None = Field(
        None,
        description="GPUs of each worker: a part of one, or whole ones. Default: 1 on a GPU "
        "device, else 0.",
    )
    labels: Labels = Field(
        default_factory=dict,
        description="Ray labels of the nodes that may hold a worker, all of them: a value, "
        "`in(a, b)`, or either after `!` for all nodes but those (`ray.io/market-type: "
        "on-demand`, `ray.io/accelerator-type: H100`).",
    )


class EncoderSection(RoleSection):
    """The frozen text encoder or VLM."""

    quantize: Quantize = Field(
        "none", description="As `model.quantize`, of the language model; its vision tower is not."
    )


def check_role(workers: int, cpus: float, gpus: float) -> None:
    """Raises ConfigError for what no role may have, given otherwise than in a config."""
    try:
        RoleSection(workers=workers, cpus=cpus, gpus=gpus)
    except ValidationError as error:
        raise ConfigError(one_line(error, RoleSection)) from None


class LearnerSection(RoleSection):
    """The optimizer: DeepSpeed under Ray Train."""

    min_workers: Positive | None = Field(
        None,
        description="Fewest learners to train with. Then there are as many as the cluster has room "
        "for, `workers` at most: fewer when a node goes, more when one comes. Default: always "
        "`workers`.",
    )
    resize_interval_s: Seconds = Field(
        60.0, description="With `min_workers`: between two looks whether more learners fit."
    )
    steps: Positive = Field(2000, description="Optimizer steps.")
    global_batch: Positive = Field(4, description="Samples of an optimizer step, all learners.")
    micro_batch: Positive = Field(1, description="Samples of a micro-batch (one bucket).")
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = Field(
        "adamw",
        description="`adamw8bit` keeps AdamW's moments in 8 bits (needs bitsandbytes): a quarter "
        "of their memory, which only counts when many weights train. `prodigy` finds the learning "
        "rate, by which `lr` is multiplied.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(
        1e-4,
        description="Learning rate; of `optimizer: prodigy` 1 as a rule, since it multiplies the "
        "rate that is found.",
    )
    d0: Annotated[float, Field(ge=1e-10, le=1)] = Field(
        1e-6, description="Of `optimizer: prodigy`: the rate to begin with, which only grows."
    )
    d_coef: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0,
        description="Of `optimizer: prodigy`: by how much its estimate of the rate is multiplied.",
    )
    weight_decay: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="Weight decay, decoupled: times the learning rate."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Betas of the moments.")
    eps: Annotated[float, Field(ge=1e-30, le=1)] = Field(
        1e-8, description="Epsilon beside the root of the second moment."
    )
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Gradient norm clip; 0 switches it off."
    )
    warmup_steps: NonNegative = Field(0, description="Linear warm-up of the learning rate.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="After warm-up.")
    deepspeed: str = Field(
        "zero1",
        description="Preset name (zero1, zero2, zero3) or the path of a DeepSpeed JSON file; "
        "batch sizes, precision, clipping and optimizer come from this config.",
    )
    bucket_mb: Positive = Field(
        256,
        description="Of `adapters: full`: weights are gathered, published, loaded and written in "
        "pieces of this many MB (a larger tensor is a piece of its own).",
    )
    attention: str | None = Field(
        None,
        description="diffusers attention backend of the learners, fused ones' teacher included; "
        "only those with a backward (e.g. `flash`, `_native_cudnn`). Default: `native`.",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the transformer's blocks in the learners, as `model.compile` "
        "is for inference workers; not under ZeRO stage 3. Gradients differ by rounding.",
    )
    gradient_checkpointing: bool | Annotated[Whole, Field(ge=1, le=1000)] = Field(
        False,
        description="Recompute activations in backward: of every block (`true`), or N for every "
        "N-th block: less is computed again, and more is kept (`dopsd plan`).",
    )
    restarts: NonNegative = Field(
        3,
        description="Restarts of learners and coordinator, all together; each resumes from the "
        "newest checkpoint.",
    )
    restart_backoff_s: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = Field(
        2.0,
        description="Seconds before the first of these restarts, doubled at each later one up to "
        "a minute (a longer one stays as it is).",
    )
    max_nonfinite: NonNegative = Field(
        5,
        description="Steps in a row whose gradients may be infinite or nan. Such a step is "
        "skipped and written to skipped.jsonl; one more of them stops the run.",
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() == "adafactor":
            raise ValueError(
                "learner.optimizer: adafactor, allowed: adamw, adamw8bit or prodigy (it needs the "
                "rows and columns of whole matrices, and ZeRO cuts them up flat; adamw8bit takes "
                "little memory, too)"
            )
        return value

    @property
    def moments(self) -> int:
        """Numbers that the optimizer keeps of each weight, and a checkpoint in fp32."""
        return 4 if self.optimizer == "prodigy" else 2

    @model_validator(mode="after")
    def _range(self) -> LearnerSection:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"learner.min_workers: {self.min_workers}, allowed: at most learner.workers "
                f"({self.workers})"
            )
        return self

    @property
    def checkpoint_every(self) -> int:
        """Of so many blocks one is computed again in the backward; 0: none."""
        return int(self.gradient_checkpointing)

    @property
    def micro_batches(self) -> int:
        """Of a whole global batch."""
        return self.global_batch // self.micro_batch

    def pause_before(self, restart: int) -> float:
        """Seconds of waiting before a restart; the first is 1."""
        longest = max(self.restart_backoff_s, _LONGEST_PAUSE)
        return min(longest, self.restart_backoff_s * 2.0 ** min(restart - 1, 60))


class InferenceSection(Section):
    """The pools of rollout and teacher workers."""

    shared: bool = Field(
        False,
        description="One pool holds both adapters on one base and does rollout and scoring; "
        "the `rollout` section sizes it and `teacher` is ignored.",
    )
    max_inflight: Positive = Field(2, description="Micro-batches queued on a worker at once.")
    max_restarts: NonNegative = Field(
        3, description="Restarts of each inference worker, and of the encoders' pipeline."
    )


class TimeoutSection(Section):
    """How long anything may take before the run says who timed out."""

    startup: Seconds = Field(900.0, description="Seconds until every role is up and loaded.")
    queue: Seconds = Field(
        86_400.0,
        description="Seconds that a run waits for its turn on a cluster whose places other runs "
        "hold (docs/faults.md).",
    )
    step: Seconds = Field(900.0, description="Seconds of one micro-batch or one step.")
