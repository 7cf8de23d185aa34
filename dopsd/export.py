"""The LoRA file: one safetensors that diffusers and ComfyUI both load at full strength.

Keys are ``transformer.<diffusers module name>.lora_A.weight`` / ``.lora_B.weight``; alpha / r is
folded into B, and there are no ``.alpha`` keys: PEFT's own prefix loads nothing into Z-Image,
and alpha tensors raise in one reader and are ignored in the other. DoRA adds
``.lora_magnitude_vector``, which diffusers reads and ComfyUI, whose DoRA is another formula, leaves
out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dopsd import __version__
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.errors import ModelError
from dopsd.models.finite import first_nonfinite
from dopsd.models.lora.factors import is_last
from dopsd.models.lora.merge import merged_record
from dopsd.models.lora.warm_start import initial_record

_PREFIX = "transformer."
ADAPTER = "dopsd.lycoris"
"""Key of the metadata of a LoKr or LoHa: how its factors are cut, as a config says it."""
_SHAPE = {"kind", "rank", "factor", "decompose_both"}


def lora_file(
    state: dict[str, Tensor],
    rank: int,
    alpha: float,
    metadata: dict[str, str],
    dtype: torch.dtype = torch.float32,
    *,
    rank_stabilized: bool = False,
) -> bytes:
    """Serialise adapter weights {``<module>.lora_A.weight``: [r, in], ...} in ``dtype``.

    ``rank_stabilized``: alpha / sqrt(rank) is folded in, in place of alpha / rank. Raises
    ModelError for weights that are not finite.
    """
    from safetensors.torch import save

    whole = folded(state, rank, alpha, rank_stabilized=rank_stabilized)
    tensors = {_PREFIX + name: tensor.to(dtype).contiguous() for name, tensor in whole.items()}
    _require_finite(tensors)
    return same_bytes(save(tensors, metadata={"format": "pt", **metadata}))


def folded(
    state: dict[str, Tensor], rank: int, alpha: float, *, rank_stabilized: bool = False
) -> dict[str, Tensor]:
    """Adapter weights in fp32 on the CPU, their strength in B (of LoKr and LoHa the last
    factor)."""
    strength = alpha / (math.sqrt(rank) if rank_stabilized else rank)
    return {
        name: tensor.detach().float().cpu() * (strength if is_last(name) else 1.0)
        for name, tensor in state.items()
    }


def _require_finite(tensors: dict[str, Tensor]) -> None:
    if name := first_nonfinite(tensors):
        raise ModelError(
            f"{name}: not finite in the type that it is exported in; nothing is written"
        )


def same_bytes(payload: bytes) -> bytes:
    """The file with its header in order of keys: safetensors writes metadata in random order, and
    two equal runs should give files that `cmp` finds equal."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


def modules_file(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise what is trained beside a LoRA, in fp32, under diffusers' names of the transformer.

    ``pipe.transformer.load_state_dict(load_file(path), strict=False)`` takes it, before or after
    the LoRA is loaded: no LoRA layer lies on any of these modules.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    _require_finite(tensors)
    return same_bytes(save(tensors, metadata={"format": "pt", **metadata}))


_STEM, _SUFFIX = "diffusion_pytorch_model", ".safetensors"


def write_transformer(
    write: Callable[[str, bytes], Any],
    folder: str,
    config: dict[str, Any],
    shards: Iterable[dict[str, Tensor]],
    count: int,
    metadata: dict[str, str],
) -> None:
    """``write(path, bytes)`` each file of ``folder``; the index, without which several shards are
    no model, comes last.

    ``config``: the base's transformer config. ``shards``: ``count`` groups of tensors by diffusers'
    names, one alive at a time.
    """
    from safetensors.torch import save

    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write(f"{folder}/config.json", text.encode())
    places: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(shards, start=1):
        name = f"{_STEM}{_SUFFIX}"
        if count > 1:
            name = f"{_STEM}-{number:05d}-of-{count:05d}{_SUFFIX}"
        _require_finite(tensors)
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        payload = save(tensors, metadata={"format": "pt", **metadata})
        del tensors  # before the next shard is made
        write(f"{folder}/{name}", same_bytes(payload))
        del payload
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index, indent=2) + "\n"
        write(f"{folder}/{_STEM}{_SUFFIX}.index.json", text.encode())


def lora_metadata(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    """What the exported file says of itself: base model, recipe, data fingerprint."""
    return described(config, manifest.fingerprint)


def described(config: RunConfig, data: str) -> dict[str, str]:
    """The same, of data whose fingerprint is known."""
    method, lora = config.method, config.lora
    objective: str = method.objective
    if objective == "off_policy":
        objective += f" off_policy_states={method.off_policy_states}"
    teacher = f"teacher={method.teacher} ema={method.ema_decay} "
    if objective == "sft":
        teacher = ""  # it has none
    variant = "".join(f" {name}" for name, on in lora.variant.items() if on)
    trained = f"rank={lora.rank} alpha={lora.alpha}{variant}"
    adapter = {}
    if lora.kind != "lora" and config.adapters != "full":
        trained = f"{lora.kind} {trained}"
        adapter = {ADAPTER: json.dumps(lora.model_dump(include=_SHAPE), sort_keys=True)}
    if config.adapters == "full":
        trained = f"adapters=full teacher_sync_every={method.teacher_sync_every}"
    elif config.adapters == "lora+modules":
        trained += f" modules={'+'.join(lora.modules_to_train)}"
    return {
        "dopsd.version": __version__,
        "dopsd.base": config.model.base,
        "dopsd.family": config.model.family,
        **({"dopsd.revision": config.model.revision} if config.model.revision else {}),
        "dopsd.context": config.context.name,
        "dopsd.recipe": (
            f"{objective} K={method.steps} weighting={method.weighting} {teacher}"
            f"lr={config.learner.lr} steps={config.learner.steps} "
            f"global_batch={config.learner.global_batch} max_policy_lag={config.max_policy_lag} "
            f"{trained} seed={config.run.seed}"
        ),
        "dopsd.data": data,
        **adapter,
        **merged_record(config.model.merge, config.model.merge_sha256),
        **initial_record(config),
    }
