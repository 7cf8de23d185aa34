"""What of a transformer a run trains: one answer for learner, workers, checkpoint and export."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn

from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.models.families.family import Family
from dopsd.models.lora.factors import Factors, is_adapters
from dopsd.models.lora.layers import (
    STUDENT,
    adapter_parameters,
    bind_parameters,
    inject,
    resolve_targets,
)

NORMS, EMBEDDERS = "norms", "embedders"


class TrainableParameters:
    """Which parameters ``adapters`` and ``lora`` of a config stand for, by diffusers' names.

    Of ``full`` and ``lora+modules`` a transformer holds one version only, student or teacher:
    ``adapter`` then tells which LoRA goes with it.
    """

    def __init__(self, config: RunConfig, family: Family) -> None:
        self.config, self.family = config, family
        self.kind = config.adapters

    def describe(self, transformer: nn.Module) -> dict[str, int]:
        """How many modules or tensors of a bare transformer each part of the config stands for.

        Raises ModelError for what matches nothing, or a rank that no adapted layer can use.
        """
        if self.kind == "full":
            names = [name for name, _ in transformer.named_parameters()]
            if extra := sorted(set(transformer.state_dict()) - set(names)):
                raise ModelError(
                    f"adapters: full, but {extra[0]} of {self.family.transformer_class} is no "
                    "parameter: its export would be incomplete; allowed: lora"
                )
            return {"all weights": len(names)}
        targets = self._targets(transformer)
        self._check_rank(transformer, [name for names in targets.values() for name in names])
        counts = {target: len(names) for target, names in targets.items()}
        return counts | {entry: len(names) for entry, names in self._modules(transformer).items()}

    def numel(self, transformer: nn.Module) -> int:
        """How many weights of a bare transformer are trained. Raises as :meth:`describe`."""
        if self.kind == "full":
            return sum(parameter.numel() for parameter in transformer.parameters())
        factors = Factors.of(self.config.lora)
        total = sum(transformer.get_parameter(name).numel() for name in self._extra(transformer))
        for name in chain.from_iterable(self._targets(transformer).values()):
            linear: Any = transformer.get_submodule(name)
            total += factors.numel(linear.out_features, linear.in_features)
        return total

    def adapted(self, transformer: nn.Module) -> list[str]:
        """Names of the modules of a bare transformer on which the LoRA lies, sorted; none of
        `full`. Raises ModelError for targets that match nothing."""
        if self.kind == "full":
            return []
        return sorted({name for names in self._targets(transformer).values() for name in names})

    def prepare(self, transformer: nn.Module, adapters: tuple[str, ...]) -> None:
        """Add LoRA layers for ``adapters`` in place, and set ``requires_grad`` on what is trained
        when the student is among them. Raises ModelError for what matches nothing."""
        if self.kind == "full":
            transformer.requires_grad_(STUDENT in adapters)
            return
        extra = self._extra(transformer)
        lora, run = self.config.lora, self.config.run
        inject(
            transformer,
            self._targets(transformer),
            lora.rank,
            lora.alpha,
            run.seed,
            adapters,
            kind=lora.kind,
            factor=lora.factor,
            decompose_both=lora.decompose_both,
            **lora.variant,
        )
        for name in extra:
            transformer.get_parameter(name).requires_grad_(STUDENT in adapters)

    def parameters(self, transformer: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
        """{name: parameter} of an adapter in a prepared transformer, in a fixed order."""
        if self.kind == "full":
            return dict(transformer.named_parameters())
        parameters = adapter_parameters(transformer, adapter)
        for name in self._extra(transformer):
            parameters[name] = transformer.get_parameter(name)
        return parameters

    def bind(self, transformer: nn.Module, adapter: str, state: dict[str, Tensor]) -> None:
        """Copy ``state`` into an adapter. Raises ModelError unless it fits exactly."""
        bind_parameters(self.parameters(transformer, adapter), state)

    def _check_rank(self, transformer: nn.Module, names: list[str]) -> None:
        weights = (transformer.get_parameter(f"{name}.weight") for name in names)
        most = max(min(weight.shape) for weight in weights)
        if self.config.lora.rank > most:
            raise ModelError(
                f"lora.rank: {self.config.lora.rank}, allowed: at most {most} (the smaller side of "
                "the largest layer that is adapted)"
            )

    def _targets(self, transformer: nn.Module) -> dict[str, list[str]]:
        return resolve_targets(
            transformer,
            self.config.lora.targets,
            self.family.lora_targets,
            self.family.lora_all_linear,
        )

    def _extra(self, transformer: nn.Module) -> list[str]:
        return sorted({name for names in self._modules(transformer).values() for name in names})

    def _modules(self, transformer: nn.Module) -> dict[str, list[str]]:
        """Parameters of each entry of ``lora.modules_to_train``; none of them is a LoRA's or under
        one, whose name in the model would then be another than in the file."""
        if self.kind != "lora+modules":
            return {}
        wanted = self.config.lora.modules_to_train
        if not wanted:
            raise ModelError("lora.modules_to_train: empty, allowed: at least one name")
        matched = {entry: match_parameters(transformer, entry) for entry in wanted}
        if missing := [entry for entry, names in matched.items() if not names]:
            raise ModelError(
                f"lora.modules_to_train: {', '.join(missing)} match no parameter; allowed: "
                f"{NORMS}, {EMBEDDERS}, or parts of names such as all_x_embedder"
            )
        linear = {name for group in self._bare_targets(transformer) for name in group}
        for entry, names in matched.items():
            for name in names:
                if name.rpartition(".")[0] in linear or ".base_layer." in name:
                    raise ModelError(
                        f"lora.modules_to_train: {entry} holds {name}, which lora.targets adapts; "
                        "allowed: one of the two"
                    )
        return matched

    def _bare_targets(self, transformer: nn.Module) -> list[list[str]]:
        """Names of the adapted modules, while there are no LoRA layers yet."""
        if any(is_adapters(name) for name, _ in transformer.named_parameters()):
            return []
        return list(self._targets(transformer).values())


def match_parameters(transformer: nn.Module, entry: str) -> list[str]:
    """Names of the parameters that ``entry`` stands for: those of every normalisation layer for
    ``norms``, of every embedder for ``embedders``, else those with ``entry`` among the parts of
    their dotted name."""
    names = [name for name, _ in transformer.named_parameters() if not is_adapters(name)]
    if entry == EMBEDDERS:
        return [name for name in names if any("embed" in part for part in name.split(".")[:-1])]
    if entry == NORMS:
        norms = [
            name
            for name, module in transformer.named_modules()
            if type(module).__name__.endswith("Norm")
        ]
        return [name for name in names if name.rpartition(".")[0] in set(norms)]
    return [name for name in names if f".{entry}." in f".{name}."]
