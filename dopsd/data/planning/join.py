"""Two prepared data sets as one: the data, and the base's own samples in a folder beside it."""

from __future__ import annotations

import hashlib
from collections import Counter

from dopsd.config.data import PRIOR
from dopsd.data.manifest import CaptionSet, Manifest
from dopsd.errors import DataError
from dopsd.files import storage


def joined(manifest: Manifest, prior: Manifest, folder: str) -> Manifest:
    """``manifest`` with the samples of ``prior``, whose shards lie in the subfolder ``folder``.

    Raises DataError when the data has a concept of the prior's name.
    """
    if PRIOR in manifest.concepts:
        raise DataError(
            f"data.prior.prompts: given, but {manifest.concepts[PRIOR]} samples of the data have "
            f"the concept {PRIOR!r}, which names the base's own samples; allowed: another name"
        )
    parts = (manifest, prior)
    sets = Counter[tuple[str, ...]]()
    for part in parts:
        sets.update({group.keys: group.samples for group in part.caption_sets})
    prints = "\n".join(part.fingerprint for part in parts)
    return manifest.model_copy(
        update={
            "seen": manifest.seen + prior.seen,
            "samples": manifest.samples + prior.samples,
            "buckets": _sum(manifest.buckets, prior.buckets),
            "concepts": _sum(manifest.concepts, prior.concepts),
            "references": _sum(manifest.references, prior.references),
            "masks": manifest.masks + prior.masks,
            "caption_sets": tuple(CaptionSet(keys=k, samples=n) for k, n in sorted(sets.items())),
            "fingerprint": hashlib.sha256(prints.encode()).hexdigest(),
            "row_groups": manifest.row_groups
            + tuple(
                group.model_copy(update={"file": storage.join(folder, group.file)})
                for group in prior.row_groups
            ),
            "files": manifest.files
            | {storage.join(folder, name): size for name, size in prior.files.items()},
            "quarantined": manifest.quarantined + prior.quarantined,
        }
    )


def without_prior(manifest: Manifest) -> Manifest:
    """The data alone, of what ``joined`` made."""
    own = [
        group for group in manifest.row_groups if {name for name, _ in group.concepts} != {PRIOR}
    ]
    concepts = {name: count for name, count in manifest.concepts.items() if name != PRIOR}
    return manifest.model_copy(update={"row_groups": tuple(own), "concepts": concepts})


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(one) + Counter(other)).items()))
