"""Which caption a sample trains with: drawn per sample and epoch, by seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from dopsd.data.manifest import Manifest
from dopsd.errors import DataError


def draw_caption(
    captions: Mapping[str, str], keys: Sequence[str], seed: int, epoch: int, sample_id: str
) -> tuple[str, str]:
    """(key, text) drawn uniformly among the asked ``keys`` that this sample has.

    No keys asked means every key of the sample. A hash decides, so the draw is the same on every
    machine and for every order of reading. Raises DataError when the sample has none of the keys.
    """
    present = [key for key in dict.fromkeys(keys) if key in captions] if keys else sorted(captions)
    if not present:
        raise DataError(
            f"sample {sample_id}: has no caption under data.caption_keys ({', '.join(keys)}); "
            f"it has: {', '.join(sorted(captions)) or 'none'}"
        )
    digest = hashlib.sha256(f"caption\0{seed}\0{epoch}\0{sample_id}".encode()).digest()
    key = present[int.from_bytes(digest[:8], "little") % len(present)]
    return key, captions[key]


def check_caption_keys(manifest: Manifest, keys: Sequence[str]) -> None:
    """Refuse ``data.caption_keys`` that the data cannot serve, before anything is loaded.

    Raises DataError when a key occurs in no sample, or when a sample has none of the keys.
    """
    known = manifest.caption_keys
    for key in keys:
        if key not in known:
            raise DataError(
                f"data.caption_keys: {key!r} is in no sample of the data, "
                f"allowed: {', '.join(sorted(known))}"
            )
    without = sum(group.samples for group in manifest.caption_sets if not {*keys} & {*group.keys})
    if keys and without:
        raise DataError(
            f"data.caption_keys: {without} of {manifest.samples} samples have none of "
            f"{', '.join(keys)}; add a key that they have: {', '.join(sorted(known))}"
        )
