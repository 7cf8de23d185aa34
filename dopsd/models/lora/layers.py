"""LoRA, LoKr and LoHa on a transformer: injection with every target checked, state in and out.

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
from dopsd.models.lora.factors import MAGNITUDE, Factors, Kind, is_last

if TYPE_CHECKING:
    from peft.tuners.loha import LoHaLayer
    from peft.tuners.lokr import LoKrLayer
    from peft.tuners.lora import LoraLayer

    AdapterLayer = LoraLayer | LoKrLayer | LoHaLayer


STUDENT, TEACHER = "student", "teacher"
BASE = "base"
"""No adapter has this name: active, it leaves the base alone."""


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
    kind: Kind = "lora",
    factor: int = -1,
    decompose_both: bool = False,
) -> None:
    """Add adapter layers in place, in the transformer's dtype: the last factor zero, so that the
    base is as it was; a LoRA's A gaussian with std 1 / rank, of LoKr and LoHa the others gaussian
    with the variance of PEFT's own.

    Each is drawn from (seed, name), so every process starts from the same weights. The first of
    ``adapters`` becomes active; only ``student`` requires grad. fp32 masters of bf16 weights are
    the optimizer's. ``dora`` adds magnitude vectors, which begin as the norms of the base's rows;
    ``rank_stabilized`` scales by alpha / sqrt(rank) in place of alpha / rank. ``factor`` and
    ``decompose_both``: of `lokr`, as ``Factors`` has them.
    """
    from peft import inject_adapter_in_model

    names = sorted({name for group in matched.values() for name in group})
    # 4-bit weights are kept as whole numbers.
    dtype = next(p.dtype for p in transformer.parameters() if p.is_floating_point())
    device = next(transformer.parameters()).device
    for adapter in adapters:
        config = _peft_config(
            Factors(rank, kind, factor, decompose_both, dora), alpha, names, rank_stabilized
        )
        inject_adapter_in_model(config, transformer, adapter)
    for name, layer in lora_layers(transformer):
        _finish(layer, kind)
        for adapter in adapters:
            for part, weight in _weights(layer, adapter).items():
                begin = _initial(seed, name, part, tuple(weight.shape), rank)
                if begin is not None:
                    weight.data.copy_(begin)
                weight.data = weight.data.to(device=device, dtype=dtype)
                weight.requires_grad_(adapter == STUDENT)
    activate(transformer, adapters[0])


def _peft_config(factors: Factors, alpha: float, names: list[str], rank_stabilized: bool) -> Any:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    # PEFT's annotation says int; its arithmetic takes any number.
    strength = cast(int, alpha)
    if factors.kind == "loha":
        return LoHaConfig(r=factors.rank, alpha=strength, target_modules=names)
    if factors.kind == "lokr":
        return LoKrConfig(
            r=factors.rank,
            alpha=strength,
            target_modules=names,
            decompose_factor=factors.factor,
            decompose_both=factors.decompose_both,
        )
    return LoraConfig(
        r=factors.rank,
        lora_alpha=strength,
        target_modules=names,
        use_dora=factors.dora,
        use_rslora=rank_stabilized,
    )


def _finish(layer: AdapterLayer, kind: Kind) -> None:
    if kind == "lora":
        return
    # In training PEFT draws from torch's global generator whether it leaves a layer out, and at a
    # probability of zero still would once in some millions of calls.
    cast(nn.Module, layer).eval()
    if kind == "lokr":
        from dopsd.models.lora.kronecker import KroneckerLinear

        layer.__class__ = KroneckerLinear


def _initial(seed: int, name: str, part: str, shape: tuple[int, ...], rank: int) -> Tensor | None:
    """What a weight begins with; None: as PEFT has it, as DoRA's magnitudes do."""
    if is_last(f".{part}"):
        return torch.zeros(shape)
    if part == "lora_A.weight":
        return _gaussian(seed, name, shape) / rank
    if part == MAGNITUDE:
        return None
    return _gaussian(seed, f"{name}.{part}", shape) / (3 * shape[1]) ** 0.5


def _gaussian(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/lora/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _weights(layer: AdapterLayer, adapter: str) -> dict[str, nn.Parameter]:
    """Weights of an adapter by their names: A (down, [r, in]), B (up, [out, r]) and, in DoRA, the
    magnitudes [out]; or the factors of LoKr or LoHa, as ``Factors`` names them."""
    if not hasattr(layer, "lora_A"):
        kept: Any = layer
        return {
            part: getattr(kept, part)[adapter]
            for part in kept.adapter_layer_names
            if adapter in getattr(kept, part)
        }
    own: Any = layer
    weights = {
        "lora_A.weight": own.lora_A[adapter].weight,
        "lora_B.weight": own.lora_B[adapter].weight,
    }
    if adapter in own.lora_magnitude_vector:
        weights[MAGNITUDE] = own.lora_magnitude_vector[adapter].weight
    return weights


def lora_layers(transformer: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """(module name, layer) of every adapted module, in module order."""
    from peft.tuners.loha import LoHaLayer
    from peft.tuners.lokr import LoKrLayer
    from peft.tuners.lora import LoraLayer

    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer | LoKrLayer | LoHaLayer):
            yield name, module


def activate(transformer: nn.Module, adapter: str) -> None:
    """Make ``adapter`` the one that the forward pass uses, none of them for ``BASE``;
    ``requires_grad`` is not touched."""
    for _, layer in lora_layers(transformer):
        layer._active_adapter = [adapter]


def adapter_parameters(transformer: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """{``<module>.lora_A.weight`` / ``.lora_B.weight`` / ``.lora_magnitude_vector`` (DoRA), or
    ``<module>.lokr_w1`` and the like: parameter} of an adapter."""
    return {
        f"{name}.{part}": weight
        for name, layer in lora_layers(transformer)
        for part, weight in _weights(layer, adapter).items()
    }


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
