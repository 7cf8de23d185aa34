"""Which caption a sample trains with: drawn per sample and epoch, by seed alone.

Of a sample that comes several times in an epoch each time counts as an epoch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from dopsd.data.manifest import Manifest
from dopsd.errors import DataError


def draw_caption(
    captions: Mapping[str, str], keys: Sequence[str], seed: int, epoch: int, sample_id: str
) -> str:
    """The text drawn uniformly among the asked ``keys`` that this sample has.

    No keys asked means every key of the sample. A hash decides, so the draw is the same on every
    machine and for every order of reading. Raises DataError when the sample has none of the keys.
    """
    present = [key for key in dict.fromkeys(keys) if key in captions] if keys else sorted(captions)
    if not present:
        raise DataError(
            f"sample {sample_id}: has no caption under data.caption_keys ({', '.join(keys)}); "
            f"it has: {', '.join(sorted(captions)) or 'none'}"
        )
    return captions[present[_draw(seed, epoch, sample_id, len(present))]]


def draw_pair(
    captions: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    seed: int,
    epoch: int,
    sample_id: str,
) -> tuple[str, str]:
    """(student's, teacher's) text: one of ``pairs`` of keys, drawn as ``draw_caption`` draws.

    Raises DataError when the sample has both captions of no pair.
    """
    whole = [pair for pair in dict.fromkeys(pairs) if captions.keys() >= {*pair}]
    if not whole:
        raise DataError(
            f"sample {sample_id}: has both captions of no pair of context.prompt_pairs "
            f"({_listed(pairs)}); it has: {', '.join(sorted(captions)) or 'none'}"
        )
    student, teacher = whole[_draw(seed, epoch, sample_id, len(whole))]
    return captions[student], captions[teacher]


def every_prompt(
    captions: Mapping[str, str],
    keys: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    dropout: float,
) -> list[tuple[str, str | None]]:
    """Every (student's, teacher's) text that some draw gives a sample, each once; the teacher's is
    None where both read the same."""
    texts: list[tuple[str, str | None]]
    if pairs:
        texts = [(captions[s], captions[t]) for s, t in pairs if captions.keys() >= {s, t}]
    else:
        texts = [(captions[key], None) for key in keys or sorted(captions) if key in captions]
    if dropout:
        texts.append(("", "" if pairs else None))
    return list(dict.fromkeys(texts))


def check_prompt_pairs(manifest: Manifest, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse ``context.prompt_pairs`` that the data cannot serve, before anything is loaded.

    Raises DataError when no sample has both captions of a pair, or when a sample has those of
    none.
    """
    known = ", ".join(sorted(manifest.caption_keys))
    for pair in pairs:
        if not any({*pair} <= {*group.keys} for group in manifest.caption_sets):
            raise DataError(
                f"context.prompt_pairs: no sample has both captions of {_listed([pair])}; the data "
                f"has: {known}"
            )
    without = sum(
        group.samples
        for group in manifest.caption_sets
        if not any({*pair} <= {*group.keys} for pair in pairs)
    )
    if pairs and without:
        raise DataError(
            f"context.prompt_pairs: {without} of {manifest.samples} samples have both captions of "
            f"none of {_listed(pairs)}; add a pair that they have: {known}"
        )


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"[{student}, {teacher}]" for student, teacher in pairs)


def dropped(share: float, seed: int, epoch: int, sample_id: str) -> bool:
    """Whether this draw trains with an empty prompt; true for ``share`` of all draws."""
    return _number("dropout", seed, epoch, sample_id) < share * 2**64


def _draw(seed: int, epoch: int, sample_id: str, count: int) -> int:
    return _number("caption", seed, epoch, sample_id) % count


def _number(purpose: str, seed: int, epoch: int, sample_id: str) -> int:
    """A whole number below 2^64, from a hash."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{epoch}\0{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


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
