"""A LoRA in the spellings that other programs read, each at the same strength.

``state`` is always {``<module>.lora_A.weight``: [r, in], ``<module>.lora_B.weight``: [out, r], ...}
by diffusers' names of the transformer's modules, the whole strength in B.

What ComfyUI reads (``comfy/lora.py``): ``transformer.X.lora_A/B.weight`` without ``.alpha`` of
FLUX.2 and, since July 2026, of Krea 2; of Z-Image the same, and by every version that knows the
model ``diffusion_model.X`` too. X are diffusers' names, which of Z-Image are complete since
December 2025.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dopsd.errors import ModelError
from dopsd.models.families.family import Family
from dopsd.models.lora.factors import MAGNITUDE, TITLES, kind_of
from dopsd.models.lora.lycoris import to_lycoris

LoraFormat = Literal["diffusers", "peft", "kohya", "comfyui"]
FORMATS: tuple[LoraFormat, ...] = get_args(LoraFormat)
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
State = dict[str, Tensor]


def spelled(state: State, format: LoraFormat, family: type[Family]) -> State:
    """``state`` under a format's keys; of a LoKr or LoHa `kohya` is LyCORIS' names. Raises
    ModelError for what the format has no words for."""
    kind = kind_of(state, "--format")
    if kind != "lora":
        if format == "kohya":
            return to_lycoris(state)
        if format == "diffusers" and kind not in family.diffusers_kinds:
            raise ModelError(
                f"--format: diffusers of a {TITLES[kind]} of {family.name}, which its "
                "load_lora_weights does not read; allowed: peft (PeftModel.from_pretrained of "
                "pipe.transformer), kohya (LyCORIS' names)"
                f"{', comfyui' if family.comfyui_prefix is not None else ''}"
            )
    return _SPELLINGS[format](state, family)


def _diffusers(state: State, family: type[Family]) -> State:
    return {f"transformer.{name}": tensor for name, tensor in state.items()}


def _peft(state: State, family: type[Family]) -> State:
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _comfyui(state: State, family: type[Family]) -> State:
    _refuse_dora(state, "comfyui", "ComfyUI's DoRA is another formula")
    if family.comfyui_prefix is None:
        raise _unknown("comfyui", family)
    return {f"{family.comfyui_prefix}{name}": tensor for name, tensor in state.items()}


def _kohya(state: State, family: type[Family]) -> State:
    """Names joined by underscores, alpha beside the weights; where kohya's model has q, k and v in
    one layer they are one LoRA of three times the rank, whose blocks do not mix."""
    _refuse_dora(state, "kohya", "kohya's is another formula")
    groups: dict[str, list[str]] = defaultdict(list)
    names = [name.removesuffix(_DOWN) for name in state if name.endswith(_DOWN)]
    for name in sorted(names):
        groups[_kohya_name(name, family)].append(name)
    spelled: State = {}
    for own, parts in sorted(groups.items()):
        size = 3 if own.endswith("qkv") else 1
        if len(parts) != size:
            raise ModelError(
                f"--format: kohya, whose {own} is {size} modules here, of which the LoRA has "
                f"{len(parts)}; allowed: another format"
            )
        parts.sort(key=_slot)
        down = torch.cat([state[part + _DOWN] for part in parts])
        up = torch.block_diag(*(state[part + _UP] for part in parts))
        prefix = f"lora_unet_{own}"
        spelled[f"{prefix}.lora_down.weight"], spelled[f"{prefix}.lora_up.weight"] = down, up
        spelled[f"{prefix}.alpha"] = torch.tensor(float(len(down)))
    return spelled


def _slot(module: str) -> int:
    """Where q, k and v lie in the layer that holds all three."""
    match = re.search(r"_([qkv])(_proj)?$", module)
    return "qkv".index(match[1]) if match else 0


def _kohya_name(module: str, family: type[Family]) -> str:
    if family.kohya_names is None:
        raise _unknown("kohya", family)
    for pattern, own in family.kohya_names:
        if (match := re.fullmatch(pattern, module)) is not None:
            return match.expand(own)
    if family.kohya_names:
        raise ModelError(f"--format: kohya has no name for {module}; allowed: another format")
    return module.replace(".", "_")


def _unknown(format: str, family: type[Family]) -> ModelError:
    return ModelError(
        f"--format: {format} of {family.name}, whose names there are not known; allowed: "
        "diffusers, peft"
    )


def _refuse_dora(state: State, format: str, why: str) -> None:
    if any(name.endswith(MAGNITUDE) for name in state):
        raise ModelError(
            f"--format: {format} of a DoRA, allowed: diffusers, peft ({why}, and it would be "
            "another adapter)"
        )


_SPELLINGS: dict[LoraFormat, Callable[[State, type[Family]], State]] = {
    "diffusers": _diffusers,
    "peft": _peft,
    "kohya": _kohya,
    "comfyui": _comfyui,
}
