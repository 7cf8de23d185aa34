"""What a learner hands out of a run: bundles for inference workers, and files for the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.coordinator.client import CoordinatorClient
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.export import lora_file, modules_file, write_transformer
from dopsd.learner.adapter_publisher import AdapterPublisher
from dopsd.learner.publisher import BucketPublisher
from dopsd.learner.weights import ReplicatedWeights, ShardedWeights, Weights
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.lora.factors import is_adapters
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.bundle import Bundle
from dopsd.run_folder.files import (
    DEBUG,
    DIFFUSERS_FILE,
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
        self._publisher: BucketPublisher | AdapterPublisher | None = None
        self._restored = restored

    def publish(self, version: int, weights: Weights) -> CheckpointRequest:
        """Publish a version, and write what the user wants of it. Collective."""
        if weights_dumped(self.config, version):
            self._keep(DEBUG, version, weights)
        request = self._client.publish(self._bundle(version, weights))
        # While the next step is rolled out. Of whole models start and end are drawn.
        if (
            version in kept_versions(self.config)
            and isinstance(weights, ReplicatedWeights)
            and small_enough(self.config, weights.layout.numel)
        ):
            self._keep(PREVIEW, version, weights, DTYPES[self.config.model.dtype])
        return request

    def _bundle(self, version: int, weights: Weights) -> Bundle:
        """The bundle of a version; of rank 0, whose references are real. Collective."""
        if self.config.source == "fused":
            return Bundle(version, {}, {}, 0)
        if self._publisher is None:
            method, put, speaks = self.config.method, self._client.put, self._client.rank == 0
            if isinstance(weights, ShardedWeights):
                self._publisher = BucketPublisher(method, weights, put, speaks, self._restored)
                self._restored = None
            else:
                self._publisher = AdapterPublisher(method, weights, put, speaks)
        return self._publisher.bundle(version)

    def _keep(
        self, folder: str, version: int, weights: Weights, dtype: torch.dtype = torch.float32
    ) -> None:
        """A version's adapters as files in the run folder's ``folder``. Collective."""
        for adapter, state in _both(weights):
            lora, modules = (weights_file(folder, version, adapter, kind) for kind in (False, True))
            self._write((lora,), modules, adapter, state, dtype)

    def export(self, weights: Weights) -> None:
        """The exports of a finished run. Collective."""
        if isinstance(weights, ShardedWeights):
            for adapter in (STUDENT, TEACHER) if weights.averages else (STUDENT,):
                self._transformer(adapter, weights)
            return
        own: tuple[str, ...] = (LORA_FILE,)
        if self.config.lora.kind in self.family.diffusers_kinds:
            own = (LORA_FILE, DIFFUSERS_FILE)
        files = {STUDENT: own, TEACHER: (TEACHER_FILE,)}
        for adapter, state in _both(weights):
            self._write(files[adapter], MODULES[adapter], adapter, state)

    def _write(
        self,
        lora_paths: Sequence[str],
        modules_path: str,
        adapter: str,
        state: dict[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """A LoRA, and what was trained beside it if anything was; by rank 0."""
        if self._client.rank:
            return
        lora, named = self.config.lora, self._named(adapter)
        own = {name: tensor for name, tensor in state.items() if is_adapters(name)}
        payload = lora_file(
            own, lora.rank, lora.alpha, named, dtype, rank_stabilized=lora.rank_stabilized
        )
        for path in lora_paths:
            self._client.write(path, payload)
        if extra := {name: tensor for name, tensor in state.items() if name not in own}:
            self._client.write(modules_path, modules_file(extra, named))

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

    def _named(self, adapter: str) -> dict[str, str]:
        return {**self._metadata, "dopsd.adapter": adapter}


def _both(weights: Weights) -> tuple[tuple[str, dict[str, Tensor]], ...]:
    """Collective."""
    assert isinstance(weights, ReplicatedWeights), "refused by the config"
    return (STUDENT, weights.full(STUDENT)), (TEACHER, weights.full(TEACHER))
