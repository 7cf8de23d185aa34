"""Publication of whole models: bucket by bucket into the object store, references to everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dopsd.config import MethodSection
from dopsd.learner.weights import ShardedWeights
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import BUCKET, bucket_key
from dopsd.policy.bundle import Bundle
from dopsd.policy.flat import HostBuffer
from dopsd.policy.versions import teacher_version


@dataclass(frozen=True)
class _Sent:
    """A model in the store: a reference and a checksum for each bucket."""

    refs: tuple[Any, ...]
    checksums: tuple[str, ...]


class BucketPublisher:
    """Makes the bundles of one learner; every rank has one, ``speaks`` says which of them stores.

    ``put`` stores bytes, as ray.put does. Of an adapter that nobody serves nothing is sent, and a
    teacher that has not changed since it was sent is sent by the same references. ``restored``: the
    bundle with which a run resumes, as it was published before.
    """

    def __init__(
        self,
        method: MethodSection,
        weights: ShardedWeights,
        put: Callable[[np.ndarray], Any],
        speaks: bool,
        restored: Bundle | None = None,
    ) -> None:
        self._weights, self._put, self._speaks = weights, put, speaks
        self._every = method.teacher_sync_every
        self._rolls_out = method.objective == "dopsd"
        self._live = weights.decay == 0.0
        self._host = HostBuffer()
        self._restored, self._teacher = restored, _sent_before(restored, speaks)

    def bundle(self, version: int) -> Bundle:
        """The bundle of ``version``; its references are rank 0's alone. Collective."""
        if self._restored is not None:
            restored, self._restored = self._restored, None
            assert restored.version == version, f"resumed at {version}, not {restored.version}"
            return restored
        sent = {}
        if self._rolls_out:
            sent[STUDENT] = self._send(STUDENT)
        begins = self._teacher is None
        moves = self._live or self._weights.averages
        if begins or (moves and version % self._every == 0):
            # A live teacher is the student, and every teacher begins as the student.
            equal = self._live or version == 0
            known = sent.get(STUDENT) if equal else None
            self._teacher = known or self._send(TEACHER)
        assert self._teacher is not None
        sent[TEACHER] = self._teacher
        return Bundle(
            version,
            {adapter: model.refs for adapter, model in sent.items()},
            {
                bucket_key(adapter, index): digest
                for adapter, model in sent.items()
                for index, digest in enumerate(model.checksums)
            },
            sum(map(len, self._weights.buckets)),
            streamed=True,
            teacher_version=teacher_version(version, self._every),
        )

    def _send(self, adapter: str) -> _Sent:
        refs, checksums = [], []
        for layout, flat in self._weights.flats(adapter):
            if self._speaks:
                payload = self._host.begin(layout, flat, {"record": BUCKET})
                checksums.append(checksum(layout.views(flat)))  # its answer is behind the copy
                refs.append(self._put(payload))
            del flat  # before the next bucket is gathered
        return _Sent(tuple(refs), tuple(checksums))


def _sent_before(bundle: Bundle | None, speaks: bool) -> _Sent | None:
    """The teacher of a bundle that is in the store already."""
    if bundle is None:
        return None
    refs = bundle.refs[TEACHER] if speaks else ()
    return _Sent(refs, tuple(bundle.checksums[bucket_key(TEACHER, n)] for n in range(len(refs))))
