"""`model.merge`: LoRAs added to the base's weights before anything is trained on it.

What is trained then lies on top of them. Pictures are drawn without, so a training adapter, which
takes the few-step distillation out of a base, is put under a run and left away afterwards; or with
`model.draw_merged`, as a LoRA that gives a base its few steps asks for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dopsd import shown, storage
from dopsd.config import RunConfig
from dopsd.errors import ModelError, StorageError, message_line
from dopsd.models.base import DTYPES, Family
from dopsd.models.finite import first_nonfinite
from dopsd.readers import checked, read_json

_KEY = "model.merge"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_PEFT, _PEFT_CONFIG = "base_model.model.", "adapter_config.json"
_OURS = "transformer."
MOST_SCALE = 100.0


@dataclass(frozen=True)
class MergedLora:
    """One entry, ``FILE`` or ``FILE@scale``."""

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, entry: str) -> MergedLora:
        """An ``@`` with no number behind it belongs to the path. Raises ModelError for a scale
        out of range."""
        path, _, text = entry.rpartition("@")
        try:
            scale = float(text)
        except ValueError:
            path, scale = entry, 1.0
        if not path or not math.isfinite(scale) or not 0 < abs(scale) <= MOST_SCALE:
            raise ModelError(
                f"{_KEY}: {shown.value(entry)}, allowed: FILE or FILE@scale, a scale from "
                f"-{MOST_SCALE:g} to {MOST_SCALE:g} that is not 0"
            )
        return cls(path, scale)

    def __str__(self) -> str:
        return f"{self.path}@{self.scale:g}"


def absolute_merge(entry: str) -> str:
    """The entry with a local path made absolute: workers stand in other folders."""
    lora = MergedLora.parse(entry)
    if storage.is_remote(lora.path):
        return entry
    return str(replace(lora, path=os.path.abspath(os.path.expanduser(lora.path))))


class _PeftConfig(BaseModel):
    """What is read of PEFT's ``adapter_config.json``."""

    r: Annotated[int, Field(ge=1)]
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Any] = {}
    alpha_pattern: dict[str, Any] = {}


def load_trained_base(
    config: RunConfig,
    family: Family,
    device: torch.device | str,
    attention: str | None = None,
    key: str = "model.attention",
) -> nn.Module:
    """The frozen transformer that a run trains on, ``model.merge`` in it; ``key`` names
    ``attention`` to the user.

    Raises ModelError as :func:`merge` and ``Family.load_transformer``.
    """
    dtype, quantize = DTYPES[config.model.dtype], config.model.quantize
    transformer = family.load_transformer(dtype, device, attention, key, quantize)
    merge(transformer, family, config.model.merge)
    return transformer


def drawn_merged(config: RunConfig) -> tuple[str, ...]:
    """The LoRAs that a run's pictures are drawn with, under whatever it trains."""
    return tuple(config.model.merge) if config.model.draw_merged else ()


@torch.no_grad()
def merge(transformer: nn.Module, family: Family, entries: Sequence[str]) -> None:
    """Add ``scale * B @ A`` of every entry to the weights, in fp32, in place.

    Raises ModelError, before a weight of its file has changed, unless each module of the file is
    a linear one of ``transformer`` and fits.
    """
    for entry in map(MergedLora.parse, entries):
        for name, (down, up) in _read(entry, family, transformer).items():
            weight = transformer.get_parameter(f"{name}.weight")
            delta = up.to(weight.device).float() @ down.to(weight.device).float()
            weight.copy_(weight.float() + entry.scale * delta)


def check_merge(skeleton: nn.Module, family: Family, entries: Sequence[str]) -> None:
    """Raises ModelError in one line for what :func:`merge` would refuse."""
    for entry in map(MergedLora.parse, entries):
        _read(entry, family, skeleton)


def merged_record(entries: Sequence[str]) -> dict[str, str]:
    """What an exported file says of what its base was merged with; nothing where it was not."""
    if not entries:
        return {}
    rows = []
    for entry in map(MergedLora.parse, entries):
        digest = hashlib.sha256(storage.read_bytes(entry.path)).hexdigest()
        rows.append(
            {"file": posixpath.basename(entry.path), "scale": entry.scale, "sha256": digest}
        )
    return {"dopsd.merged": json.dumps(rows)}


def _read(
    entry: MergedLora, family: Family, transformer: nn.Module
) -> dict[str, tuple[Tensor, Tensor]]:
    """{module name: (A [r, in], B [out, r])} of a file, its own strength folded into B."""
    where = f"{_KEY}: {entry.path}"
    try:
        tensors = load(storage.read_bytes(entry.path))
    except FileNotFoundError:
        raise ModelError(f"{where}: no such file, allowed: a LoRA (.safetensors)") from None
    except StorageError as error:
        raise ModelError(f"{_KEY}: {error}") from None
    except SafetensorError as error:
        raise ModelError(f"{where}: not a safetensors file ({message_line(error)})") from None
    if name := first_nonfinite(tensors):
        raise ModelError(f"{where}: {name} is not finite")
    pairs = _pairs(_by_module(tensors, entry.path, family, where), where)
    for name, (down, up) in pairs.items():
        _check_fit(name, down, up, transformer, where)
    return pairs


def _by_module(
    tensors: dict[str, Tensor], path: str, family: Family, where: str
) -> dict[str, Tensor]:
    """The tensors under ``<module>.lora_A.weight`` and ``.lora_B.weight``."""
    if any(name.startswith(_PEFT) for name in tensors):
        strength = _peft_strength(path, where)
        return {
            name.removeprefix(_PEFT): tensor * strength if ".lora_B." in name else tensor
            for name, tensor in tensors.items()
        }
    import diffusers

    # Of other programs' keys (diffusion_model., lora_unet_, .alpha) diffusers knows the meaning.
    try:
        converted = getattr(diffusers, family.pipeline_class).lora_state_dict(dict(tensors))
    except Exception as error:  # its converters raise many kinds
        raise ModelError(
            f"{where}: keys that diffusers cannot read ({message_line(error)})"
        ) from None
    return {name.removeprefix(_OURS): tensor for name, tensor in converted.items()}


def _peft_strength(path: str, where: str) -> float:
    """alpha / r, which PEFT keeps beside the file."""
    beside = storage.join(posixpath.dirname(path), _PEFT_CONFIG)
    if not storage.exists(beside):
        raise ModelError(
            f"{where}: keys of PEFT, but no {_PEFT_CONFIG} beside it, which says how strong they "
            "are; allowed: both, or a file with diffusers' keys"
        )
    config = checked(
        read_json(beside, dict[str, Any], ModelError, where=f"{_KEY}: {beside}"),
        f"{_KEY}: {beside}",
        _PeftConfig,
        ModelError,
    )
    if config.use_dora or config.rank_pattern or config.alpha_pattern:
        raise ModelError(
            f"{_KEY}: {beside}: DoRA, or ranks that differ, allowed: a plain LoRA of one rank"
        )
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _pairs(tensors: dict[str, Tensor], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    names = [name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
    expected = {name + part for name in names for part in (_DOWN, _UP)}
    if odd := sorted(expected ^ tensors.keys()):
        what = "is missing" if odd[0] in expected else "is no part of a plain LoRA"
        raise ModelError(f"{where}: {odd[0]} {what}, allowed: lora_A and lora_B of linear modules")
    if not names:
        raise ModelError(f"{where}: no LoRA in it, allowed: lora_A and lora_B of linear modules")
    return {name: (tensors[name + _DOWN], tensors[name + _UP]) for name in sorted(names)}


def _check_fit(name: str, down: Tensor, up: Tensor, transformer: nn.Module, where: str) -> None:
    try:
        module = transformer.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise ModelError(
            f"{where}: {name} is no linear module of this base; allowed: a LoRA that was made for "
            "it, of which every module fits"
        )
    found = [list(up.shape), list(down.shape)]
    rank = down.shape[0]
    wanted = [[module.out_features, rank], [rank, module.in_features]]
    if found != wanted:
        raise ModelError(f"{where}: {name}: B and A are {found}, here {wanted}")
