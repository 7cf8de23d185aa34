"""What every section of the run config is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError


def _off(value: Any) -> Any:
    """YAML 1.1 reads a plain ``off`` as false."""
    return "off" if value is False else value


Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
OFF_IS_A_WORD = BeforeValidator(_off)
"""For keys that may be ``off``."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Device = Literal["auto", "cpu", "cuda"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, info: Any) -> Any:
        """pydantic would take ``true`` (in YAML 1.1 also ``yes`` and ``on``) for 1."""
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise PydanticCustomError("int_type" if int in kinds else "float_type", "a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field may have, those of a union one by one."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}
