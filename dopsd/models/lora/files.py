"""LoRA files of any spelling, as one: dopsd's, diffusers', ComfyUI's and kohya's keys, and PEFT's.

Tensors are named by modules of the transformer, and a file's own strength (alpha, or what PEFT
keeps beside it) lies in B, or the last factor of LoKr and LoHa.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from dopsd.errors import ModelError, StorageError, message_line
from dopsd.files import storage
from dopsd.models.families.family import Family
from dopsd.models.finite import first_nonfinite
from dopsd.models.lora.factors import is_last, kind_of
from dopsd.models.lora.fit import module_of
from dopsd.models.lora.lycoris import by_module, flat
from dopsd.readers import checked, json_value, read_json

_PEFT, _PEFT_CONFIG = "base_model.model.", "adapter_config.json"
_OURS = "transformer."


@dataclass(frozen=True)
class LoraFile:
    """What a file holds; ``sha256`` as :func:`lora_digest` gives it."""

    where: str
    """The config's key and the path, as an error begins."""
    tensors: dict[str, Tensor]
    """``<module>.lora_A.weight`` [r, in], ``<module>.lora_B.weight`` [out, r] and perhaps more; or
    the factors of LoKr or LoHa."""
    metadata: dict[str, str]
    sha256: str

    def modules(self) -> dict[str, dict[str, Tensor]]:
        """{module: {the rest of a tensor's name, such as ``lora_A.weight``: tensor}}."""
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            module = module_of(name)
            modules.setdefault(module, {})[name[len(module) + 1 :]] = tensor
        return modules


class _PeftConfig(BaseModel):
    """What is read of PEFT's ``adapter_config.json``."""

    r: Annotated[int, Field(ge=1)]
    lora_alpha: float = Field(validation_alias=AliasChoices("lora_alpha", "alpha"))
    use_rslora: bool = False
    rank_pattern: dict[str, Any] = {}
    alpha_pattern: dict[str, Any] = {}


def absolute_lora(path: str) -> str:
    """A local path made absolute: workers stand in other folders."""
    return path if storage.is_remote(path) else os.path.abspath(os.path.expanduser(path))


def path_and_number(text: str) -> tuple[str, float]:
    """``FILE@number``, whose number is 1 where there is none; an ``@`` with no number behind it
    belongs to the path."""
    path, _, number = text.rpartition("@")
    try:
        return path, float(number)
    except ValueError:
        return text, 1.0


def lora_digest(path: str, key: str) -> str:
    """SHA-256 of a file; of PEFT's, of the file and the ``adapter_config.json`` beside it, in which
    a part of what it stands for lies. Raises ModelError in the name of ``key``."""
    payload = _payload(path, key)
    return _digest(path, payload, any(n.startswith(_PEFT) for n in tensor_names(payload)))


def read_lora_file(
    path: str,
    key: str,
    family: Family | type[Family],
    sha256: str | None = None,
    modules: Iterable[str] = (),
) -> LoraFile:
    """``sha256``: what the file has to have. ``modules``: names of the transformer's, without which
    LyCORIS' are not read. Raises ModelError in the name of ``key`` for what
    cannot be read, is not finite, or is another file."""
    where = f"{key}: {path}"
    payload = _payload(path, key)
    try:
        tensors = load(payload)
    except SafetensorError as error:
        raise ModelError(f"{where}: not a safetensors file ({message_line(error)})") from None
    if name := first_nonfinite(tensors):
        raise ModelError(f"{where}: {name} is not finite")
    digest = _digest(path, payload, any(name.startswith(_PEFT) for name in tensors))
    if sha256 is not None and digest != sha256:
        raise other_file(where, digest, f"{key}_sha256", sha256)
    if kind_of(tensors, where) == "lora":
        named = _by_module(tensors, path, family, key)
    else:
        named = _lycoris(tensors, path, key, modules)
    return LoraFile(where, named, file_metadata(payload), digest)


def other_file(where: str, found: str, key: str, wanted: str) -> ModelError:
    """``wanted`` stands under ``key``: of the file with which a run began, or was to begin."""
    return ModelError(
        f"{where}: its SHA-256 is {found[:12]}..., {key} says {wanted[:12]}...: another file than "
        f"the run began with; allowed: that file, or a new run without {key}"
    )


def _payload(path: str, key: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise ModelError(f"{key}: {path}: no such file, allowed: a LoRA (.safetensors)") from None
    except StorageError as error:
        raise ModelError(f"{key}: {error}") from None


def file_metadata(payload: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of what is none."""
    said = _header(payload).get("__metadata__")
    return {str(k): str(v) for k, v in said.items()} if isinstance(said, dict) else {}


def _header(payload: bytes) -> dict[str, Any]:
    """Of a safetensors file; empty for what is none, which whoever loads it will say."""
    size = int.from_bytes(payload[:8], "little")
    try:
        header = json_value(payload[8 : 8 + size])
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def tensor_names(payload: bytes) -> list[str]:
    """Of a safetensors file, none of what is none; from its header alone."""
    return list(_header(payload))


def _digest(path: str, payload: bytes, peft: bool) -> str:
    digest = hashlib.sha256(payload)
    if peft and storage.exists(beside := _peft_config(path)):
        digest.update(storage.read_bytes(beside))
    return digest.hexdigest()


def _by_module(
    tensors: dict[str, Tensor], path: str, family: Family | type[Family], key: str
) -> dict[str, Tensor]:
    where = f"{key}: {path}"
    if any(name.startswith(_PEFT) for name in tensors):
        strength = _peft_strength(path, key)
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
    # A conversion never makes fewer modules of more, but it leaves out what it does not know.
    found, kept = ({module_of(name) for name in names} for names in (tensors, converted))
    if len(kept) < len(found):
        raise ModelError(
            f"{where}: diffusers reads {len(kept)} of {len(found)} modules; allowed: a LoRA of "
            "which every module is read"
        )
    return {name.removeprefix(_OURS): tensor for name, tensor in converted.items()}


def _lycoris(
    tensors: dict[str, Tensor], path: str, key: str, modules: Iterable[str]
) -> dict[str, Tensor]:
    named = flat(by_module(tensors, f"{key}: {path}", modules))
    strength = 1.0
    if any(name.startswith(_PEFT) for name in tensors):
        strength = _peft_strength(path, key)
    return {n: tensor * strength if is_last(n) else tensor for n, tensor in named.items()}


def _peft_config(path: str) -> str:
    return storage.join(posixpath.dirname(path), _PEFT_CONFIG)


def _peft_strength(path: str, key: str) -> float:
    """alpha / r, which PEFT keeps beside the file."""
    beside = _peft_config(path)
    if not storage.exists(beside):
        raise ModelError(
            f"{key}: {path}: keys of PEFT, but no {_PEFT_CONFIG} beside it, which says how strong "
            "they are; allowed: both, or a file with diffusers' keys"
        )
    where = f"{key}: {beside}"
    config = checked(
        read_json(beside, dict[str, Any], ModelError, where=where), where, _PeftConfig, ModelError
    )
    if config.rank_pattern or config.alpha_pattern:
        raise ModelError(f"{where}: ranks that differ, allowed: a LoRA of one rank")
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
