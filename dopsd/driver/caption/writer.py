"""The vision-language model behind an actor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dopsd.data.pictures.images import BadImage, decode_image
from dopsd.data.sources.fields import check_captions, one_line
from dopsd.evaluation.vlm import Vlm
from dopsd.ray_cluster.process import use_device

WHO = "captions"
_SIDE = 1024
"""Pixels of the longer side of what the model sees: a photo of 50 megapixels is tens of thousands
of tokens to some, and says no more."""


@dataclass(frozen=True)
class Written:
    """A caption, or why there is none."""

    text: str = ""
    problem: str = ""


class CaptionWriter:
    """A plain class; ``caption.run`` wraps it as an actor."""

    def __init__(self, model: str, key: str, question: str, device: str) -> None:
        use_device(device)
        self._model, self._key, self._question, self._device = model, key, question, device

    @cached_property
    def _vlm(self) -> Vlm:
        return Vlm(WHO, self._model, self._device)

    def write(self, picture: bytes) -> Written:
        """The caption of an image file. Raises MissingWeights when the model cannot be loaded."""
        vlm = self._vlm
        try:
            image = decode_image(picture)
        except BadImage as error:
            return Written(problem=str(error))
        image.thumbnail((_SIDE, _SIDE))
        text = one_line(vlm.answer([image], self._question))
        if not text:
            return Written(problem="empty answer")
        try:
            check_captions({self._key: text})
        except ValueError as error:
            return Written(problem=f"answer: {error}")
        return Written(text)
