"""Whole models as tests publish them: no DeepSpeed, no store."""

from __future__ import annotations

from torch import Tensor

from dopsd.policy.buckets import bucket_key, cut
from dopsd.policy.bundle import Bundle
from tests.helpers.bundles import pack_bucket

LIMIT = 2**18


def whole_bundle(
    version: int, models: dict[str, dict[str, Tensor]], teacher_version: int | None = None
) -> Bundle:
    """A bundle whose references are the buckets' bytes; ``models``: tensors by adapter."""
    refs: dict[str, tuple[bytes, ...]] = {}
    checksums: dict[str, str] = {}
    modules = 0
    for adapter, state in models.items():
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
        made = [pack_bucket({n: state[n].detach() for n in names}) for names in cut(sizes, LIMIT)]
        refs[adapter] = tuple(payload for payload, _ in made)
        for index, (_, digest) in enumerate(made):
            checksums[bucket_key(adapter, index)] = digest
        modules = len(state)
    return Bundle(version, refs, checksums, modules, streamed=True, teacher_version=teacher_version)
