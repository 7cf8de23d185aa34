"""The `edit_reference` context: image editing with the ground truth as the LAST reference.

The student reads the prompt and sees the sample's reference pictures; the teacher sees the same,
then the target, and an instruction that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dopsd.contexts.edit import EditEncoder
from dopsd.data.sample import Sample
from dopsd.errors import DataError


class EditReferenceEncoder(EditEncoder):
    """``EditEncoder`` whose student sees the sample's own references."""

    default_instruction: ClassVar[str] = (
        "The last reference picture is the finished result: draw exactly that."
    )

    def _visible(self, sample: Sample) -> Sequence[np.ndarray]:
        if not sample.references:
            raise DataError(f"sample {sample.sample_id}: has no reference pictures")
        return sample.references
