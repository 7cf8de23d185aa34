"""Publication of a LoRA (and modules beside it): whole, to every worker that serves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dopsd.config import MethodSection
from dopsd.learner.weights import ReplicatedWeights
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle
from dopsd.policy.flat import HostBuffer

_Sent = tuple[Any, str]
"""An adapter in the store: its reference and its checksum."""


class AdapterPublisher:
    """Makes the bundles of one learner; every rank has one, ``speaks`` says which of them copies
    and stores.

    ``put`` stores bytes, as ray.put does. A student that nobody rolls out is not sent, and a
    teacher that does not move is sent once.
    """

    def __init__(
        self,
        method: MethodSection,
        weights: ReplicatedWeights,
        put: Callable[[np.ndarray], Any],
        speaks: bool,
    ) -> None:
        self._weights, self._put, self._speaks = weights, put, speaks
        self._rolls_out = method.objective == "dopsd"
        self._frozen: _Sent | None = None
        self._host = {adapter: HostBuffer() for adapter in (STUDENT, TEACHER)}

    def bundle(self, version: int) -> Bundle:
        """The bundle of ``version``, empty but on the rank that speaks. Collective."""
        begun = {}
        for adapter in (STUDENT, TEACHER) if self._rolls_out else (TEACHER,):
            if adapter == TEACHER and self._frozen is not None:
                continue
            flat = self._weights.flat(adapter)
            if self._speaks:
                meta = {"version": version, "adapter": adapter}
                begun[adapter] = flat, self._host[adapter].begin(self._weights.layout, flat, meta)
        if not self._speaks:
            if not self._weights.teacher_moves:
                self._frozen = None, ""
            return Bundle(version, {}, {}, 0)
        # Both copies are on their way. A checksum's answer is behind them on the device.
        views = self._weights.layout.views
        digests = {adapter: checksum(views(flat)) for adapter, (flat, _) in begun.items()}
        sent = {adapter: (self._put(begun[adapter][1]), digests[adapter]) for adapter in begun}
        if self._frozen is not None:
            sent[TEACHER] = self._frozen
        elif not self._weights.teacher_moves:
            self._frozen = sent[TEACHER]
        return Bundle(
            version,
            {adapter: ref for adapter, (ref, _) in sent.items()},
            {adapter: digest for adapter, (_, digest) in sent.items()},
            len(self._weights.layout.shapes),
        )
