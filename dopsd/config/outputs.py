"""What a run leaves behind: `run`, `checkpoint`, `preview`, `preflight` and `debug`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dopsd.config.base import NonNegative, Positive, SamplerSteps, Section, Seed

Resume = Literal["never", "auto", "require"]


class CheckpointSection(Section):
    """When a checkpoint is written, and which stay."""

    every_steps: NonNegative = Field(
        200, description="A checkpoint every N optimizer steps; 0: none by steps."
    )
    every_minutes: Annotated[float, Field(ge=0, le=1e6)] = Field(
        20.0, description="And one when the last is this many minutes old; 0: none by time."
    )
    keep_last: Positive = Field(2, description="Newest checkpoints that are kept.")
    keep_every: NonNegative = Field(
        0, description="Checkpoints of every N-th step are kept as well; 0: none."
    )


class PreflightSection(Section):
    """Before training: can the teacher draw the concept?"""

    mode: Literal["warn", "strict", "off"] = Field(
        "warn",
        description="Before training, check that the teacher draws nearer to the targets than the "
        "student: warn when it was not shown, refuse to train (`strict`), or do not look.",
    )
    samples: Positive = Field(8, description="Samples drawn, each by student and teacher.")
    num_noises: Positive = Field(
        2, le=1000, description="Pictures of each sample, each from its own noise."
    )
    metric: Literal["auto", "latent", "oracle", "dino", "clip"] = Field(
        "auto",
        description="Distance to the target: `oracle` reads pictures of the shapes world, `dino` "
        "and `clip` compare features, `latent` VAE latents. `auto`: `oracle` where it can read the "
        "targets, else `dino` where `model` is given, else `latent`.",
    )
    model: str | None = Field(
        None,
        description="Folder or hub id of the `dino` or `clip` model. Default: the metric's own.",
    )
    margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="How much nearer the teacher must be, as a fraction of the distance."
    )


class PlanSection(Section):
    """Before training: does what the run needs fit the GPUs?"""

    mode: Literal["warn", "strict", "off"] = Field(
        "warn",
        description="Before training, compute what each role needs (`dopsd plan`): say so and warn "
        "of a GPU that is too small, refuse to train on it (`strict`), or do not look.",
    )
    card: str | None = Field(
        None,
        description="The GPU that is planned for, one of those that `dopsd plan --card` lists. "
        "Default: the smallest of this machine, if it has one.",
    )


class RunSection(Section):
    """Name, folder and seed of the run."""

    name: str = Field("run", description="Name of the run, shown in logs and LoRA metadata.")
    folder: str = Field("runs/run", description="Run folder (local or s3://).")
    seed: Seed = Field(0, description="Seed of noise, order, captions and LoRA init.")
    overwrite: bool = Field(False, description="Replace an existing run folder.")
    resume: Resume = Field(
        "never",
        description="What is done about a run in the folder. `never`: it is refused, or replaced. "
        "`require`: the run goes on from its newest checkpoint, and without one it is refused. "
        "`auto`: start, go on, or begin anew (keeping the shards) where no checkpoint was saved "
        "yet; a finished run prints its summary and ends well. The same command may then be given "
        "any number of times; `overwrite` replaces nothing.",
    )
    determinism: Literal["off", "strict"] = Field(
        "off",
        description="`strict`: deterministic kernels alone, so that two runs on like GPUs are "
        "asked to agree bit by bit; slower, and an operator that has none stops the run with its "
        "name. `off`: gradients on GPUs vary from run to run. CPUs are deterministic either way.",
    )


class DebugSection(Section):
    """Records of how a number came about."""

    dump_trajectories: NonNegative = Field(
        0,
        description="Write the scored micro-batches of the first steps as safetensors, N at most, "
        "and the adapters that made them.",
    )


class PreviewSection(Section):
    """Pictures of contact sheet and run page."""

    samples: NonNegative = Field(
        4, description="Samples drawn on contact sheet and run page; 0 leaves both drawings out."
    )
    prompts: list[str] | str = Field(
        default_factory=list,
        description="Own prompts, drawn under the base and every adapter that is kept, each from "
        "its own fixed noise, by rollout workers that are idle while it trains and the rest after: "
        "a list of 64 at most, or a text file with one a line.",
    )
    steps: SamplerSteps | None = Field(None, description="Sampler steps. Default: method.steps.")
    every: NonNegative = Field(
        0,
        description="Keep both adapters every N optimizer steps, to draw how pictures changed "
        "over training; 0: at each quarter of the run.",
    )
    max_weights_mb: NonNegative = Field(
        512,
        description="Adapters larger than this (MB, one of them in model.dtype) are not kept, and "
        "only start and end are drawn.",
    )

    @property
    def draws(self) -> bool:
        """Whether there is anything to draw, and so adapters to keep."""
        return bool(self.samples or self.prompts)
