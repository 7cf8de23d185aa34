"""An adapter in the named-tensor form of an exported file, into a stock pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dopsd.errors import ModelError
from dopsd.models.lora.factors import TITLES, kind_of

_PREFIX = "transformer."


def load_adapter(pipeline: Any, state: Mapping[str, Tensor], adapter: str) -> None:
    """Load ``state`` ({``transformer.<module>.<factor>``: tensor}, strength folded in) under the
    name ``adapter``: a LoRA as ``load_lora_weights`` does, LoKr and LoHa of every family.

    Raises ModelError beside an adapter of another kind, and ValueError as diffusers does.
    """
    kind = kind_of(state, adapter)
    there = {config.peft_type.lower() for config in _configs(pipeline.transformer).values()}
    if others := there - {kind}:
        raise ModelError(mixed(kind, others.pop()))
    if kind == "lora":
        pipeline.load_lora_weights(dict(state), adapter_name=adapter)
        return
    if kind == "lokr":
        pipeline.transformer.load_lora_adapter(
            dict(state), prefix=_PREFIX.rstrip("."), adapter_name=adapter
        )
    else:
        _load_loha(pipeline.transformer, state, adapter)
    # New layers are in training mode, in which PEFT draws whether it leaves one out.
    pipeline.transformer.eval()


def mixed(kind: str, other: str) -> str:
    """What is said of adapters of two kinds on one base."""
    return (
        f"a {TITLES.get(kind, kind)} beside a {TITLES.get(other, other)}, allowed: adapters of one "
        "kind together"
    )


def _configs(transformer: Any) -> dict[str, Any]:
    configs: dict[str, Any] = getattr(transformer, "peft_config", {})
    return configs


def _load_loha(transformer: Any, state: Mapping[str, Tensor], adapter: str) -> None:
    """As diffusers does it for a LoKr; it knows no LoHa."""
    from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict

    own = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    ranks = {
        name.rpartition(".")[0]: int(tensor.shape[0])
        for name, tensor in own.items()
        if name.endswith(".hada_w1_b")
    }
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    pattern = {f"^{module}$": other for module, other in ranks.items() if other != rank}
    config = LoHaConfig(
        r=rank,
        alpha=rank,
        target_modules=sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
    )
    inject_adapter_in_model(config, transformer, adapter_name=adapter)
    set_peft_model_state_dict(transformer, own, adapter)
    transformer._hf_peft_config_loaded = True
