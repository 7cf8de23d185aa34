"""The index beside weights in several files of safetensors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, StringConstraints

FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+\.safetensors$")]
"""Beside the index: one that somebody sends may name no file elsewhere."""


class WeightIndex(BaseModel):
    """What is read of it; libraries add more."""

    weight_map: dict[str, FileName]
    """File of each tensor."""
