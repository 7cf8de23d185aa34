"""LoKr and LoHa files: their keys by modules of the transformer, and the weights they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dopsd.errors import ModelError
from dopsd.models.lora.factors import TITLES, is_last, kind_of

_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
LYCORIS = "lycoris_"
"""Before a module's name, its dots written as underscores."""
_ALPHA = "alpha"
_ALLOWED = (
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    *({*one, *two} for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")) for two in (
        ("lokr_w2",), ("lokr_w2_a", "lokr_w2_b")
    )),
)  # fmt: skip


def by_module(
    tensors: Mapping[str, Tensor], where: str, modules: Iterable[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """{module: {factor's name: tensor}} of a file of dopsd, PEFT, ComfyUI or LyCORIS, its alpha in
    the last factor.

    ``modules``: those of the transformer, without which LyCORIS' names cannot be read. Raises
    ModelError, which begins with ``where``, for keys that are no linear layer's LoKr or LoHa.
    """
    title = TITLES[kind_of(tensors, where)]
    spelled = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        if module.startswith(LYCORIS):
            bare = module.removeprefix(LYCORIS)
            module = spelled.get(bare, module)
        found.setdefault(module, {})[part] = tensor
    for module, parts in found.items():
        alpha = parts.pop(_ALPHA, None)
        if {*parts} not in _ALLOWED or any(part.ndim != 2 for part in parts.values()):
            odd = ", ".join(sorted(parts)) or _ALPHA
            raise ModelError(
                f"{where}: {module} holds {odd}, which is no {title} of a linear layer; allowed: "
                f"the factors that PEFT's {title} has"
            )
        if alpha is not None and (rank := rank_of(parts)):
            last = next(name for name in parts if is_last(f".{name}"))
            parts[last] = parts[last] * (float(alpha) / rank)
    return found


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """None where all factors are whole, of which LyCORIS ignores alpha."""
    low = ("lokr_w2_b", "lokr_w1_b", "hada_w1_b")
    return next((int(parts[name].shape[0]) for name in low if name in parts), None)


def sides(parts: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(outputs, inputs) of the layer that they fit; None where they do not fit each other."""
    if "hada_w1_a" in parts:
        products = [_product(parts, "hada_w1"), _product(parts, "hada_w2")]
        return products[0] if products[0] == products[1] else None
    left, right = _product(parts, "lokr_w1"), _product(parts, "lokr_w2")
    return left and right and (left[0] * right[0], left[1] * right[1])


def _product(parts: Mapping[str, Tensor], name: str) -> tuple[int, int] | None:
    if name in parts:
        rows, columns = parts[name].shape
        return rows, columns
    first, second = parts[f"{name}_a"], parts[f"{name}_b"]
    fits = first.shape[1] == second.shape[0]
    return (first.shape[0], second.shape[1]) if fits else None


def delta(parts: Mapping[str, Tensor]) -> Tensor:
    """What the factors of a layer add to its weight [outputs, inputs], fp32, by PEFT's formulas."""
    from peft.tuners.loha.layer import make_weight
    from peft.tuners.lokr.layer import make_kron

    wide = {name: part.float() for name, part in parts.items()}
    if "hada_w1_a" in wide:
        one, two = (wide["hada_w1_a"], wide["hada_w1_b"]), (wide["hada_w2_a"], wide["hada_w2_b"])
        product: Tensor = make_weight(*one, *two, torch.tensor(1.0))
        return product
    left, right = (
        wide[name] if name in wide else wide[f"{name}_a"] @ wide[f"{name}_b"]
        for name in ("lokr_w1", "lokr_w2")
    )
    product = make_kron(left, right)
    return product


def to_lycoris(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state by module under LyCORIS' names, with the alpha that leaves its strength as it is."""
    spelled: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    for module, parts in sorted(modules.items()):
        own = f"{LYCORIS}{module.replace('.', '_')}"
        spelled |= {f"{own}.{part}": tensor for part, tensor in parts.items()}
        spelled[f"{own}.{_ALPHA}"] = torch.tensor(float(rank_of(parts) or 1))
    return spelled


def flat(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{``<module>.<factor>``: tensor}."""
    return {f"{m}.{part}": tensor for m, parts in modules.items() for part, tensor in parts.items()}
