"""A teacher from which the target is withheld: importable by Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.contexts import EncoderFactory
from dopsd.data.sample import Sample
from dopsd.records import Context


class BlindFactory(EncoderFactory):
    """The config's encoder, but the teacher gets the student's context."""

    def __call__(self):
        encoder = super().__call__()
        see = encoder.encode

        def encode(samples: Sequence[Sample]) -> tuple[Context, Context]:
            student, _ = see(samples)
            return student, student

        encoder.encode = encode
        return encoder
