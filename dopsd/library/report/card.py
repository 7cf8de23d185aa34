"""What became of a concept: the record ``card.json`` in its folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64UrlBytes, BaseModel, ConfigDict, Field

from dopsd.ownership.ownership import FileDigest

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Scores(BaseModel):
    """Of the pictures of a contact sheet, means over its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Literal["oracle", "latent", "sprite"]
    """By which distances to the target are taken: see evaluation/preflight/distance.py. Of
    `shapes:sprites#SEED` it is the share of cells that are not the concept's sprite."""
    base: Distance
    student: Distance
    """0 where every picture is its target."""
    sharpness: Distance | None
    """The student's as a multiple of the base's; None where the base drew nothing but flat ones."""
    base_drawn: Share | None = None
    drawn: Share | None = None
    """Shares of pictures, the base's and the student's, that show the concept, where an oracle can
    tell: of sprites."""


class Card(BaseModel):
    """What became of a concept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dopsd-card"] = "dopsd-card"
    version: Literal[1] = 1
    concept: str
    fingerprint: str
    pictures: Count
    captions: Count
    planned_steps: Count
    steps: Count
    """That were trained: fewer where ``stopped`` says why."""
    stopped: str = ""
    attempt: Count
    """In which it succeeded."""
    seconds: Annotated[float, Field(ge=0)]
    """Of the attempt that ended it, from the concept's arrival at the worker."""
    first_loss: float | None
    last_loss: float | None
    """Means of the first and of the last steps."""
    adapter_sha256: str
    """Of the fp32 student as it was trained, before it was cast."""
    scores: Scores | None = None
    thumbnail: Base64UrlBytes = b""
    """Target, base and student of the sheet's first row side by side: a small WebP. Given, as it is
    written, in base64."""
    no_sheet: str = ""
    """Why there is no sheet, where one was asked for."""
    files: dict[str, FileDigest]
    dopsd: str
    """Version."""
