"""How much of a LoRA file a base takes, told before anything is loaded.

diffusers leaves out what it cannot place, at most with a warning: a LoRA of another base, or in a
spelling that is read in part, would draw weaker pictures without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.models.lora.factors import Kind, kind_of
from dopsd.models.lora.lycoris import by_module, flat, rank_of, sides

_PREFIX = "transformer."
_PART = re.compile(r"\.(?:lora_|lokr_|hada_|dora_scale|alpha$|diff)")
"""Where the name of a tensor inside a LoRA's module begins."""
_NAMED = 3


@dataclass(frozen=True)
class LoraFit:
    """A LoRA file against a base, module by module."""

    fitting: tuple[str, ...]
    """Modules of the transformer that it adapts, by diffusers' names."""
    unfit: tuple[str, ...]
    """Modules of the file that the base has not, or has in another size."""
    sizes_differ: bool
    """Whether some of those are there in another size."""
    ranks: tuple[int, ...]
    state: dict[str, Tensor]
    """The tensors by diffusers' keys, alpha folded in."""
    kind: Kind = "lora"

    @property
    def total(self) -> int:
        return len(self.fitting) + len(self.unfit)

    def sentence(self) -> str:
        """n of m, with the first that do not fit."""
        said = f"{len(self.fitting)} of {self.total} modules fit the base"
        if self.unfit:
            more = len(self.unfit) - _NAMED
            others = f" and {more} more" if more > 0 else ""
            said += f" (not {', '.join(self.unfit[:_NAMED])}{others})"
        return said

    def check(self, path: str, partial: bool) -> None:
        """Raises ModelError when nothing fits, or unless ``partial`` when something does not."""
        if not self.fitting and self.sizes_differ:
            raise ModelError(f"{path}: its weights have other shapes than the base's layers")
        if not self.fitting:
            raise ModelError(f"{path}: none of its keys fits the base, so it would change nothing")
        if self.unfit and not partial:
            raise ModelError(
                f"{path}: {self.sentence()}; allowed: a LoRA of this base, or --partial to load "
                "what fits"
            )

    def fitting_state(self) -> dict[str, Tensor]:
        """The tensors of the modules that fit."""
        fitting = {*self.fitting}
        return {key: tensor for key, tensor in self.state.items() if module_of(key) in fitting}


def lora_fit(pipeline: Any, transformer: nn.Module, path: str, payload: bytes) -> LoraFit:
    """``pipeline``: a diffusers pipeline or its class, whose own conversion of other spellings
    (kohya's, PEFT's, ComfyUI's) is what counts. ``transformer`` may be on the meta device. Raises
    ModelError for a file that is no LoRA that it can convert."""
    try:
        raw = load(payload)
        kind = kind_of(raw, path)
        if kind != "lora":
            return _lycoris_fit(kind, raw, transformer, path)
        state: dict[str, Tensor] = pipeline.lora_state_dict(dict(raw))
    except (SafetensorError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: no LoRA that loads ({reason})") from None
    sizes = _sizes(transformer)
    modules: dict[str, list[str]] = {}
    for key in state:
        modules.setdefault(module_of(key), []).append(key)
    fitting, unfit, differ = [], [], False
    for module, keys in modules.items():
        own = module.removeprefix(_PREFIX) if module.startswith(_PREFIX) else ""
        if own in sizes and all(_has_size(key, state[key], sizes[own]) for key in keys):
            fitting.append(module)
        else:
            unfit.append(module)
            differ |= own in sizes
    # What the conversion left out without a word: it never makes fewer modules of more.
    lost = len({module_of(key) for key in raw}) - len(modules)
    unfit += ["one that diffusers leaves out"] * max(0, lost)
    ranks = {tensor.shape[0] for key, tensor in state.items() if ".lora_A." in key}
    return LoraFit(tuple(fitting), tuple(unfit), differ, tuple(sorted(ranks)), state)


def _lycoris_fit(
    kind: Kind, raw: Mapping[str, Tensor], transformer: nn.Module, path: str
) -> LoraFit:
    """Of a LoKr or LoHa, whose keys are read here: diffusers reads some families' alone."""
    sizes = _sizes(transformer)
    modules = by_module(raw, path, sizes)
    fits = {
        name: name in sizes and sides(parts) == sizes[name][::-1] for name, parts in modules.items()
    }
    ranks = {rank for parts in modules.values() if (rank := rank_of(parts))}
    return LoraFit(
        tuple(f"{_PREFIX}{name}" for name, fit in fits.items() if fit),
        tuple(f"{_PREFIX}{name}" for name, fit in fits.items() if not fit),
        any(name in sizes for name, fit in fits.items() if not fit),
        tuple(sorted(ranks)),
        {f"{_PREFIX}{name}": tensor for name, tensor in flat(modules).items()},
        kind,
    )


def _sizes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """{linear module: (inputs, outputs)}."""
    return {
        name.removesuffix(".base_layer"): (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def module_of(key: str) -> str:
    """The module that a tensor of a LoRA file belongs to, as the file names it."""
    match = _PART.search(key)
    return key[: match.start()] if match else key


def _has_size(key: str, tensor: Tensor, size: tuple[int, int]) -> bool:
    if ".lora_A." in key:
        return tensor.ndim == 2 and tensor.shape[1] == size[0]
    if ".lora_B." in key:
        return tensor.ndim == 2 and tensor.shape[0] == size[1]
    return True


def spelling(payload: bytes) -> str:
    """Whose names the keys of a LoRA file are."""
    keys = load(payload).keys()
    for start, whose in (
        ("lora_unet_", "kohya's (lora_unet_...)"),
        ("lora_transformer_", "OneTrainer's (lora_transformer_...)"),
        ("lycoris_", "LyCORIS' (lycoris_...)"),
        ("base_model.model.", "PEFT's (base_model.model....)"),
        ("diffusion_model.", "ComfyUI's (diffusion_model....)"),
        (_PREFIX, "diffusers' (transformer....)"),
    ):
        if any(key.startswith(start) for key in keys):
            return whose
    return "unknown"


def has_alpha(payload: bytes) -> bool:
    """Whether strengths stand beside the weights, as tensors of their own."""
    return any(key.endswith(".alpha") for key in load(payload))
