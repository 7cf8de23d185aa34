"""What a learner hands out of a run: bundles for inference workers, and files for the user."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.coordinator.client import CoordinatorClient
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.export import lora_file, modules_file, write_transformer
from dopsd.learner.publisher import BucketPublisher
from dopsd.learner.weights import ReplicatedWeights, ShardedWeights, Weights
from dopsd.models.base import DTYPES, Family
from dopsd.models.lora import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle
from dopsd.run_folder.files import (
    DEBUG,
    LORA_FILE,
    MODULES,
    PREVIEW,
    TEACHER_FILE,
    TRANSFORMERS,
    weights_file,
)
from dopsd.run_folder.preview_files import kept_versions, small_enough
from dopsd.run_folder.trajectories import weights_dumped


class Exporter:
    """The outputs of one rank; rank 0 alone stores and writes.

    ``metadata``: what exported files say of themselves. ``restored``: the bundle with which a run
    resumes whose weights travel in buckets.
    """

    def __init__(
        self,
        config: RunConfig,
        family: Family,
        metadata: dict[str, str],
        client: CoordinatorClient,
        restored: Bundle | None = None,
    ) -> None:
        self.config, self.family, self._metadata, self._client = config, family, metadata, client
        self._publisher: BucketPublisher | None = None
        self._restored = restored

    def publish(self, version: int, weights: Weights) -> CheckpointRequest:
        """Publish a version, and write what the user wants of it. Collective."""
        self.before_publish(version, weights)
        request = self._client.publish(self.bundle(version, weights))
        self.after_publish(version, weights)  # while the next step is rolled out
        return request

    def bundle(self, version: int, weights: Weights) -> Bundle:
        """The bundle of a version; of rank 0, whose references are real. Collective."""
        client = self._client
        if self.config.source == "fused":
            return Bundle(version, {}, {}, 0)
        if isinstance(weights, ShardedWeights):
            if self._publisher is None:
                self._publisher = BucketPublisher(
                    self.config.method, weights, client.put, client.rank == 0, self._restored
                )
                self._restored = None
            return self._publisher.bundle(version)
        if client.rank:
            return Bundle(version, {}, {}, 0)
        dtype = DTYPES[self.config.model.dtype]
        return Bundle.create(version, weights.student, weights.ema.tensors, dtype, client.put)

    def before_publish(self, version: int, weights: Weights) -> None:
        """Files that the user wants of a version before it is published."""
        if self._client.rank == 0 and weights_dumped(self.config, version):
            for adapter, state in _both(weights):
                payload = self._lora(adapter, state)
                self._client.write(weights_file(DEBUG, version, adapter), payload)
                self._write_modules(weights_file(DEBUG, version, adapter, True), adapter, state)

    def after_publish(self, version: int, weights: Weights) -> None:
        """Files that can wait until the version is rolled out."""
        if isinstance(weights, ShardedWeights):
            return  # start and end are drawn
        if self._client.rank or version not in kept_versions(self.config):
            return
        both = _both(weights)
        if small_enough(self.config, both[0][1]):
            for adapter, state in both:
                payload = self._lora(adapter, state, DTYPES[self.config.model.dtype])
                self._client.write(weights_file(PREVIEW, version, adapter), payload)
                self._write_modules(weights_file(PREVIEW, version, adapter, True), adapter, state)

    def export(self, weights: Weights) -> None:
        """The exports of a finished run. Collective."""
        if isinstance(weights, ShardedWeights):
            for adapter in (STUDENT, TEACHER) if weights.averages else (STUDENT,):
                self._transformer(adapter, weights)
            return
        if self._client.rank:
            return
        for (adapter, state), file in zip(_both(weights), (LORA_FILE, TEACHER_FILE)):
            self._client.write(file, self._lora(adapter, state))
            self._write_modules(MODULES[adapter], adapter, state)

    def _write_modules(self, path: str, adapter: str, state: dict[str, Tensor]) -> None:
        """What was trained beside the LoRA, if anything was."""
        if extra := {name: tensor for name, tensor in state.items() if ".lora_" not in name}:
            self._client.write(path, modules_file(extra, self._named(adapter)))

    def _transformer(self, adapter: str, weights: ShardedWeights) -> None:
        shards: Iterator[dict[str, Tensor]] = weights.gather(adapter)
        if self._client.rank:
            for _ in shards:  # every rank gathers
                pass
            return
        write_transformer(
            self._client.write,
            TRANSFORMERS[adapter],
            self.family.part_config("transformer"),
            shards,
            len(weights.buckets),
            self._named(adapter),
        )

    def _lora(
        self, adapter: str, state: dict[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> bytes:
        lora = self.config.lora
        state = {name: tensor for name, tensor in state.items() if ".lora_" in name}
        return lora_file(
            state,
            lora.rank,
            lora.alpha,
            self._named(adapter),
            dtype,
            rank_stabilized=lora.rank_stabilized,
        )

    def _named(self, adapter: str) -> dict[str, str]:
        return {**self._metadata, "dopsd.adapter": adapter}


def _both(weights: Weights) -> tuple[tuple[str, dict[str, Tensor]], ...]:
    assert isinstance(weights, ReplicatedWeights), "refused by the config"
    return (STUDENT, weights.student), (TEACHER, weights.ema.tensors)
