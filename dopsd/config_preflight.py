"""The section `preflight` of the run config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dopsd.config_section import OFF_IS_A_WORD, Positive, Section


class PreflightSection(Section):
    mode: Annotated[Literal["warn", "strict", "off"], OFF_IS_A_WORD] = Field(
        "warn",
        description="Before training, check that the teacher draws nearer to the targets than the "
        "student: warn when it was not shown, refuse to train (`strict`), or do not look.",
    )
    samples: Positive = Field(8, description="Samples drawn, each by student and teacher.")
    noises: Positive = Field(2, description="Pictures of each sample, each from its own noise.")
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
