"""The section `context` of the run config, and what each context needs of data and family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from dopsd.config.base import Positive, Section
from dopsd.config.data import MAX_PIXELS

REFERENCE_FAMILIES = ("flux2_klein",)
"""Families whose transformer takes reference pictures as tokens beside the image's own."""
VLM_FAMILIES: tuple[str, ...] = ("krea2", "qwen_image")
"""Families whose text encoder is itself a VLM: the context `vlm` needs no other."""
MAX_REFERENCE_PIXELS = 2048**2
"""Prepared shards hold reference pictures of at most this many pixels."""


@dataclass(frozen=True)
class ContextNeeds:
    """What a context reads of a sample, and what it asks of the rest of the config."""

    image: bool = False
    """The teacher sees the target."""
    references: bool = False
    """Both roles see the sample's own reference pictures."""
    prompt_pairs: bool = False
    """The teacher reads another caption of the sample."""
    vlm: bool = False
    """The teacher sees the target through a VLM."""
    reference_tokens: bool = False
    """Pictures reach the transformer as reference tokens, with an instruction."""

    @property
    def teacher_sees(self) -> str:
        """What the teacher sees beyond the student, for the titles of pictures."""
        return "target" if self.image else "detailed prompt"


CONTEXT_NEEDS = {
    "vlm": ContextNeeds(image=True, vlm=True),
    "enhanced_prompt": ContextNeeds(prompt_pairs=True),
    "edit": ContextNeeds(image=True, reference_tokens=True),
    "edit_reference": ContextNeeds(image=True, references=True, reference_tokens=True),
}


class ContextSection(Section):
    """What the teacher sees and the student does not."""

    name: Literal["vlm", "enhanced_prompt", "edit", "edit_reference"] = Field(
        "vlm",
        description="What the teacher sees beyond the student. `vlm`: the target image through a "
        "VLM. `enhanced_prompt`: a more detailed caption. `edit`: the target as reference tokens. "
        "`edit_reference`: both see the sample's references, the teacher also the target.",
    )
    text_tokens: Positive = Field(512, description="Most tokens of a text context.")
    image_text_tokens: Positive = Field(1024, description="Most tokens of an image+text context.")
    image_min_pixels: Positive = Field(
        512**2, le=MAX_PIXELS, description="Smallest image shown to the VLM."
    )
    image_max_pixels: Positive = Field(
        768**2, le=MAX_PIXELS, description="Largest image shown to the VLM."
    )
    prompt_pairs: list[tuple[str, str]] = Field(
        default_factory=list,
        description="Of `enhanced_prompt`: pairs of caption keys [student's, teacher's], e.g. "
        "[[short, detailed]]; one pair is drawn per sample and epoch.",
    )
    instruction: str | None = Field(
        None,
        description="Of `edit` and `edit_reference`: the sentence after the teacher's prompt. "
        "Default: the context's own.",
    )
    reference_max_pixels: Positive = Field(
        1024**2,
        le=MAX_REFERENCE_PIXELS,
        description="Larger reference pictures are scaled down to this area.",
    )

    @property
    def needs(self) -> ContextNeeds:
        return CONTEXT_NEEDS[self.name]

    @model_validator(mode="after")
    def _combinations(self) -> ContextSection:
        needs, name = self.needs, self.name
        if self.image_min_pixels > self.image_max_pixels:
            raise ValueError(
                f"context.image_min_pixels: {self.image_min_pixels}, allowed: at most "
                f"context.image_max_pixels ({self.image_max_pixels})"
            )
        if needs.prompt_pairs and not self.prompt_pairs:
            raise ValueError(
                f"context.prompt_pairs: missing with context.name: {name}, allowed: pairs of "
                "caption keys [student's, teacher's], e.g. [[short, detailed]]"
            )
        if self.prompt_pairs and not needs.prompt_pairs:
            raise ValueError(
                f"context.prompt_pairs: given with context.name: {name}, allowed: none (both roles "
                "read one caption); context.name: enhanced_prompt takes pairs"
            )
        for student, teacher in self.prompt_pairs:
            if student == teacher:
                raise ValueError(
                    f"context.prompt_pairs: [{student}, {teacher}], allowed: two different keys "
                    "(the teacher would see nothing that the student does not)"
                )
        if self.instruction is not None:
            if not needs.reference_tokens:
                raise ValueError(
                    f"context.instruction: given with context.name: {name}, allowed: none (only "
                    "edit and edit_reference have one)"
                )
            if not self.instruction.strip():
                raise ValueError(f"context.instruction: {self.instruction!r}, allowed: a sentence")
        return self
