"""`model.merge`: LoRAs added to the base's weights before anything is trained on it.

What is trained then lies on top of them. Pictures are drawn without, so a training adapter, which
takes the few-step distillation out of a base, is put under a run and left away afterwards; or with
`model.draw_merged`, as a LoRA that gives a base its few steps asks for.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.files import storage
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.lora.factors import kind_of
from dopsd.models.lora.files import absolute_lora, lora_digest, path_and_number, read_lora_file
from dopsd.models.lora.lycoris import delta, sides

_KEY = "model.merge"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
MOST_SCALE = 100.0


@dataclass(frozen=True)
class MergedLora:
    """One entry, ``FILE`` or ``FILE@scale``."""

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, entry: str) -> MergedLora:
        """Raises ModelError for a scale out of range."""
        path, scale = path_and_number(entry)
        if not path or not math.isfinite(scale) or not 0 < abs(scale) <= MOST_SCALE:
            raise ModelError(
                f"{_KEY}: {shown.value(entry)}, allowed: FILE or FILE@scale, a scale from "
                f"-{MOST_SCALE:g} to {MOST_SCALE:g} that is not 0"
            )
        return cls(path, scale)

    def __str__(self) -> str:
        return f"{self.path}@{self.scale!r}"


def absolute_merge(entry: str) -> str:
    """The entry with a local path made absolute: workers stand in other folders."""
    lora = MergedLora.parse(entry)
    return (
        entry if storage.is_remote(lora.path) else str(replace(lora, path=absolute_lora(lora.path)))
    )


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
    merge(transformer, family, config.model.merge, config.model.merge_sha256)
    return transformer


def drawn_merged(config: RunConfig) -> tuple[str, ...]:
    """The LoRAs that a run's pictures are drawn with, under whatever it trains."""
    return tuple(config.model.merge) if config.model.draw_merged else ()


@torch.no_grad()
def merge(
    transformer: nn.Module, family: Family, entries: Sequence[str], digests: Sequence[str] = ()
) -> None:
    """Add ``scale`` times what every entry stands for (of a LoRA B @ A) to the weights, in fp32,
    in place.

    ``digests``: what the files have to have, if that is known. Raises ModelError, before a weight
    of its file has changed, unless each module of the file is a linear one of ``transformer`` and
    fits.
    """
    for entry, digest in _with_digests(entries, digests):
        for name, parts in _read(entry, family, transformer, digest).items():
            weight = transformer.get_parameter(f"{name}.weight")
            added = _delta({part: tensor.to(weight.device) for part, tensor in parts.items()})
            weight.copy_(weight.float() + entry.scale * added)


def check_merge(skeleton: nn.Module, family: Family, entries: Sequence[str]) -> None:
    """Raises ModelError in one line for what :func:`merge` would refuse."""
    for entry in map(MergedLora.parse, entries):
        _read(entry, family, skeleton)


def merged_record(entries: Sequence[str], digests: Sequence[str] = ()) -> dict[str, str]:
    """What an exported file says of what its base was merged with; nothing where it was not."""
    rows = [
        {
            "file": posixpath.basename(entry.path),
            "scale": entry.scale,
            "sha256": digest or lora_digest(entry.path, _KEY),
        }
        for entry, digest in _with_digests(entries, digests)
    ]
    return {"dopsd.merged": json.dumps(rows)} if rows else {}


def _with_digests(
    entries: Sequence[str], digests: Sequence[str]
) -> Iterator[tuple[MergedLora, str | None]]:
    known: Sequence[str | None] = digests or [None] * len(entries)
    return zip(map(MergedLora.parse, entries), known, strict=True)


def _delta(parts: Mapping[str, Tensor]) -> Tensor:
    if "B" in parts:
        return parts["B"].float() @ parts["A"].float()
    return delta(parts)


def _read(
    entry: MergedLora, family: Family, transformer: nn.Module, digest: str | None = None
) -> dict[str, dict[str, Tensor]]:
    """{module name: {A: [r, in], B: [out, r]}} of a file, its own strength folded into B; or the
    factors of its LoKr or LoHa."""
    names = [name for name, _ in transformer.named_modules()]
    file = read_lora_file(entry.path, _KEY, family, digest, names)
    if kind_of(file.tensors, file.where) != "lora":
        factors = dict(sorted(file.modules().items()))
        for name, parts in factors.items():
            linear = _linear(name, transformer, file.where)
            wanted = (linear.out_features, linear.in_features)
            if sides(parts) != wanted:
                raise ModelError(f"{file.where}: {name}: its factors fit no layer of {[*wanted]}")
        return factors
    pairs = _pairs(file.tensors, file.where)
    for name, (down, up) in pairs.items():
        _check_fit(name, down, up, transformer, file.where)
    return {name: {"A": down, "B": up} for name, (down, up) in pairs.items()}


def _pairs(tensors: dict[str, Tensor], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    names = [name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
    expected = {name + part for name in names for part in (_DOWN, _UP)}
    if odd := sorted(expected ^ tensors.keys()):
        what = "is missing" if odd[0] in expected else "is no part of a plain LoRA"
        raise ModelError(f"{where}: {odd[0]} {what}, allowed: lora_A and lora_B of linear modules")
    if not names:
        raise ModelError(f"{where}: no LoRA in it, allowed: lora_A and lora_B of linear modules")
    return {name: (tensors[name + _DOWN], tensors[name + _UP]) for name in sorted(names)}


def _linear(name: str, transformer: nn.Module, where: str) -> nn.Linear:
    try:
        module = transformer.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise ModelError(
            f"{where}: {name} is no linear module of this base; allowed: a LoRA that was made for "
            "it, of which every module fits"
        )
    return module


def _check_fit(name: str, down: Tensor, up: Tensor, transformer: nn.Module, where: str) -> None:
    module = _linear(name, transformer, where)
    found = [list(up.shape), list(down.shape)]
    rank = down.shape[0]
    wanted = [[module.out_features, rank], [rank, module.in_features]]
    if found != wanted:
        raise ModelError(f"{where}: {name}: B and A are {found}, here {wanted}")
