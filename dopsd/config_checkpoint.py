"""The section `checkpoint` of the run config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dopsd.config_section import NonNegative, Positive, Section


class CheckpointSection(Section):
    every_steps: NonNegative = Field(
        200, description="A checkpoint every N optimizer steps; 0: none by steps."
    )
    every_minutes: Annotated[float, Field(ge=0)] = Field(
        20.0, description="And one when the last is this many minutes old; 0: none by time."
    )
    keep_last: Positive = Field(2, description="Newest checkpoints that are kept.")
    keep_every: NonNegative = Field(
        0, description="Checkpoints of every N-th step are kept as well; 0: none."
    )
