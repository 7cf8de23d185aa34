"""What every section of the run config is made of."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from dopsd.readers import PlainNull


def _whole(value: Any) -> Any:
    """People write 1e5 for a whole number too; pydantic takes that for floats alone."""
    if isinstance(value, str) and "e" in value.lower():
        with contextlib.suppress(ValueError):
            if (number := float(value)).is_integer():
                return int(number)
    return value


def _held(value: int) -> int:
    """Tensors, seeds and the footers of files hold whole numbers in 64 bits."""
    if not -(2**63) <= value < 2**63:
        raise PydanticCustomError("whole_number_size", "at most 2^63 - 1")
    return value


Whole = Annotated[int, BeforeValidator(_whole), AfterValidator(_held)]
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
Quantize = Literal["none", "fp8", "int8", "nf4"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_or_its_text(cls, values: Any) -> Any:
        """What is written as nothing is None for a key, but for one that takes text alone."""
        if not isinstance(values, dict):
            return None if isinstance(values, PlainNull) else values
        return {
            key: None if isinstance(value, PlainNull) and not _is_text(cls, key, value) else value
            for key, value in values.items()
        }


def _is_text(section: type[BaseModel], key: Any, value: PlainNull) -> bool:
    field = section.model_fields.get(key) if isinstance(key, str) else None
    return bool(value) and field is not None and field.annotation is str
