"""LoRA adapters on a transformer: injection with every target checked, state in and out.

Adapters are switched by the layers' active name alone: PEFT's ``set_adapter`` also flips
``requires_grad`` on both adapters, which is a hazard under ZeRO and DDP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dopsd.errors import ModelError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


STUDENT, TEACHER = "student", "teacher"
BASE = "base"
"""No adapter has this name: active, it leaves the base alone."""
MAGNITUDE = "lora_magnitude_vector"
"""Name of DoRA's magnitudes: that of PEFT's own files, which diffusers reads too."""


def match_targets(transformer: nn.Module, targets: list[str]) -> dict[str, list[str]]:
    """Which linear modules each target (a name suffix) adapts.

    Raises ModelError naming every target that matches no linear module, or for no target at all.
    """
    if not targets:
        raise ModelError("lora.targets: empty, allowed: at least one suffix of a module name")
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    matched = {
        target: [name for name in linear if name == target or name.endswith(f".{target}")]
        for target in targets
    }
    missing = [target for target, names in matched.items() if not names]
    if missing:
        suffixes = sorted({name.split(".", 2)[-1] for name in linear})
        raise ModelError(
            f"lora.targets: {', '.join(missing)} match no linear module; allowed: suffixes of "
            f"module names such as {', '.join(suffixes[:12])}"
        )
    return matched


def resolve_targets(
    transformer: nn.Module,
    targets: list[str] | str,
    defaults: tuple[str, ...],
    all_linear: tuple[str, ...] = (),
) -> dict[str, list[str]]:
    """``default``, ``all-linear`` or a list, as {target: matched module names}.

    ``all_linear``: what `all-linear` means; empty is every linear module. Raises ModelError as
    ``match_targets`` does.
    """
    if targets == "all-linear" and not all_linear:
        names = [n for n, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        return {"all-linear": names}
    named = {"default": defaults, "all-linear": all_linear}
    wanted = list(named[targets]) if isinstance(targets, str) else targets
    return match_targets(transformer, wanted)


def inject(
    transformer: nn.Module,
    matched: dict[str, list[str]],
    rank: int,
    alpha: float,
    seed: int,
    adapters: tuple[str, ...] = (STUDENT,),
    *,
    dora: bool = False,
    rank_stabilized: bool = False,
) -> None:
    """Add LoRA layers in place, in the transformer's dtype: B zero, A gaussian with std 1 / rank.

    A is drawn per module from (seed, module name), so every process starts from the same
    weights. The first of ``adapters`` becomes active; only ``student`` requires grad. fp32 masters
    of bf16 weights are the optimizer's. ``dora`` adds magnitude vectors, which begin as the norms
    of the base's rows; ``rank_stabilized`` scales by alpha / sqrt(rank) in place of alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = sorted({name for group in matched.values() for name in group})
    # 4-bit weights are kept as whole numbers.
    dtype = next(p.dtype for p in transformer.parameters() if p.is_floating_point())
    device = next(transformer.parameters()).device
    for adapter in adapters:
        # PEFT's annotation says int; its arithmetic takes any number.
        config = LoraConfig(
            r=rank,
            lora_alpha=cast(int, alpha),
            target_modules=names,
            use_dora=dora,
            use_rslora=rank_stabilized,
        )
        inject_adapter_in_model(config, transformer, adapter)
    for name, layer in lora_layers(transformer):
        for adapter in adapters:
            parts = _parts(layer, adapter)
            down, up, *_ = parts.values()
            with torch.no_grad():
                down.weight.copy_(_gaussian(seed, name, tuple(down.weight.shape)) / rank)
                up.weight.zero_()
            for part in parts.values():
                part.to(device=device, dtype=dtype)
                part.requires_grad_(adapter == STUDENT)
    activate(transformer, adapters[0])


def _gaussian(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/lora/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _parts(layer: LoraLayer, adapter: str) -> dict[str, Any]:
    """Modules of an adapter by the names of their weights: A (down, [r, in]), B (up, [out, r])
    and, in DoRA, the magnitudes [out]."""
    parts = {"lora_A.weight": layer.lora_A[adapter], "lora_B.weight": layer.lora_B[adapter]}
    if adapter in layer.lora_magnitude_vector:
        parts[MAGNITUDE] = layer.lora_magnitude_vector[adapter]
    return parts


def lora_layers(transformer: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(module name, layer) of every adapted module, in module order."""
    from peft.tuners.lora import LoraLayer

    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def activate(transformer: nn.Module, adapter: str) -> None:
    """Make ``adapter`` the one that the forward pass uses, none of them for ``BASE``;
    ``requires_grad`` is not touched."""
    for _, layer in lora_layers(transformer):
        layer._active_adapter = [adapter]


def adapter_parameters(transformer: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """{``<module>.lora_A.weight`` / ``.lora_B.weight`` / ``.lora_magnitude_vector`` (DoRA):
    parameter} of an adapter."""
    parameters = {}
    for name, layer in lora_layers(transformer):
        for part, module in _parts(layer, adapter).items():
            parameters[f"{name}.{part}"] = module.weight
    return parameters


@torch.no_grad()
def bind_parameters(parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copy ``state`` into ``parameters``.

    Raises ModelError, before anything is copied, unless names and shapes fit exactly.
    """
    if missing := sorted(parameters.keys() - state.keys()):
        raise ModelError(f"weights: {len(missing)} tensors missing, e.g. {missing[0]}")
    if unknown := sorted(state.keys() - parameters.keys()):
        raise ModelError(f"weights: {len(unknown)} fit no parameter, e.g. {unknown[0]}")
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ModelError(
                f"weights: {name} is {list(state[name].shape)}, expected {list(parameter.shape)}"
            )
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
