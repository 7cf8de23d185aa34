"""What every section of the run config is made of."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """People write 1e5 for a whole number too; pydantic takes that for floats alone."""
    if isinstance(value, str) and "e" in value.lower():
        with contextlib.suppress(ValueError):
            if (number := float(value)).is_integer():
                return int(number)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
MOST = 2**31 - 1
"""What 32 bits hold: no count is larger."""
MOST_SECONDS = 1e8
"""Three years. Clocks and locks take no number of seconds that is much larger."""
MOST_STEPS = 1000
"""Levels of noise that a scheduler tells apart, so that more steps would repeat some."""

Positive = Annotated[Whole, Field(ge=1, le=MOST)]
NonNegative = Annotated[Whole, Field(ge=0, le=MOST)]
SamplerSteps = Annotated[Whole, Field(ge=1, le=MOST_STEPS)]
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=MOST_SECONDS)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
"""Times per epoch."""
Device = Literal["auto", "cpu", "cuda"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)
