"""`lora.init`: the LoRA that a run begins from, student and teacher alike."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.models.lora.factors import MAGNITUDE, TITLES, Factors, is_last, kind_of
from dopsd.models.lora.files import LoraFile, lora_digest, read_lora_file
from dopsd.models.lora.lycoris import sides
from dopsd.models.trained import TrainableParameters

_KEY = "lora.init"
_DOWN, _UP = "lora_A.weight", "lora_B.weight"
_NAMED = 3


def initial_lora(trained: TrainableParameters, transformer: nn.Module) -> dict[str, Tensor]:
    """{parameter's name: fp32 tensor} of the adapter with which the config begins; empty without
    ``lora.init``.

    ``transformer``: bare, perhaps without weights. The file's strength is kept, whatever
    ``lora.alpha`` is. Raises ModelError unless the file's modules are those that the config adapts,
    of its rank.
    """
    config = trained.config
    if config.lora.init is None:
        return {}
    names = [name for name, _ in transformer.named_modules()]
    file = read_lora_file(config.lora.init, _KEY, trained.family, config.lora.init_sha256, names)
    _refuse_part(file)
    _refuse_another_kind(file, config)
    modules = file.modules()
    _check_modules(file.where, modules, trained.adapted(transformer), transformer)
    _check_factors(file.where, modules, config, transformer)
    strength = _strength(config)
    return {
        f"{module}.{part}": tensor.float() / (strength if is_last(f".{part}") else 1.0)
        for module, parts in modules.items()
        for part, tensor in parts.items()
    }


def initial_record(config: RunConfig) -> dict[str, str]:
    """What an exported file says of what it began from; nothing where it began from the base."""
    if config.lora.init is None:
        return {}
    digest = config.lora.init_sha256 or lora_digest(config.lora.init, _KEY)
    file = {"file": posixpath.basename(config.lora.init), "sha256": digest}
    return {"dopsd.init": json.dumps(file)}


def for_pipeline(config: RunConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`initial_lora` as an exported file has it, the strength in B again."""
    strength = _strength(config)
    return {
        f"transformer.{name}": tensor * (strength if is_last(name) else 1.0)
        for name, tensor in state.items()
    }


def _strength(config: RunConfig) -> float:
    lora = config.lora
    return lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilized else lora.rank)


def _refuse_part(file: LoraFile) -> None:
    """A LoRA that was trained with modules beside it is not what was trained."""
    if " modules=" in file.metadata.get("dopsd.recipe", ""):
        raise ModelError(
            f"{file.where}: trained with modules beside it (adapters: lora+modules), without which "
            "it is not what was trained; allowed: a LoRA that was trained alone"
        )


def _refuse_another_kind(file: LoraFile, config: RunConfig) -> None:
    kind = kind_of(file.tensors, file.where)
    if kind != config.lora.kind:
        raise ModelError(
            f"{file.where}: a {TITLES[kind]}, lora.kind is {config.lora.kind}; allowed: a "
            f"{TITLES[config.lora.kind]}, or lora.kind={kind}"
        )


def _check_modules(
    where: str, modules: Mapping[str, Any], adapted: Sequence[str], transformer: nn.Module
) -> None:
    """Raises ModelError unless the file's modules are the adapted ones, in their sizes."""
    wanted = {*adapted}
    unfit = [n for n, p in modules.items() if n not in wanted or not _fits(p, transformer, n)]
    if unfit or not modules:
        fitting = f"{len(modules) - len(unfit)} of {len(modules)} modules fit"
        raise ModelError(
            f"{where}: {fitting}{_named('not', unfit)}; allowed: a LoRA of this base, all of whose "
            "modules lora.targets names"
        )
    if missing := sorted(wanted - modules.keys()):
        raise ModelError(
            f"{where}: {len(modules)} of {len(modules)} modules fit, but lora.targets names "
            f"{len(wanted)}{_named('also', missing)}; allowed: lora.targets of the file's modules"
        )


def _fits(parts: Mapping[str, Tensor], transformer: nn.Module, name: str) -> bool:
    """Whether its tensors, of whatever rank, are those of a LoRA on the module."""
    linear: Any = transformer.get_submodule(name)
    if not any(part.startswith("lora_") for part in parts):
        return sides(parts) == (linear.out_features, linear.in_features)
    rank = parts[_DOWN].shape[0] if _DOWN in parts else 0
    wanted = {_DOWN: [rank, linear.in_features], _UP: [linear.out_features, rank]}
    if MAGNITUDE in parts:
        wanted[MAGNITUDE] = [linear.out_features]
    return {part: list(tensor.shape) for part, tensor in parts.items()} == wanted


def _check_factors(
    where: str,
    modules: Mapping[str, Mapping[str, Tensor]],
    config: RunConfig,
    transformer: nn.Module,
) -> None:
    """Raises ModelError unless rank and variant are the config's."""
    if config.lora.kind != "lora":
        _check_cut(where, modules, Factors.of(config.lora), transformer)
        return
    ranks = sorted({parts[_DOWN].shape[0] for parts in modules.values()})
    if ranks != [config.lora.rank]:
        found = ", ".join(map(str, ranks))
        raise ModelError(
            f"{where}: of rank {found}, lora.rank is {config.lora.rank}; allowed: a LoRA of one "
            "rank, which lora.rank is"
        )
    dora = {MAGNITUDE in parts for parts in modules.values()}
    if dora != {config.lora.dora}:
        raise ModelError(
            f"{where}: {'with' if True in dora else 'without'} DoRA's magnitudes, lora.dora is "
            f"{str(config.lora.dora).lower()}; allowed: a LoRA of the same kind"
        )


def _check_cut(
    where: str,
    modules: Mapping[str, Mapping[str, Tensor]],
    factors: Factors,
    transformer: nn.Module,
) -> None:
    for name, parts in modules.items():
        linear: Any = transformer.get_submodule(name)
        wanted = factors.shapes(linear.out_features, linear.in_features)
        found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        if found != wanted:
            keys = "lora.rank"
            if factors.kind == "lokr":
                keys = "lora.rank, lora.factor and lora.decompose_both"
            raise ModelError(
                f"{where}: {name} is {_shapes(found)}, here {_shapes(wanted)}; allowed: {keys} of "
                "the file"
            )


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{part} {[*shape]}" for part, shape in sorted(shapes.items()))


def _named(word: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" ({word} {', '.join(names[:_NAMED])}{more})"
