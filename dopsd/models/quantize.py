"""A frozen base in 8 or 4 bits, by the quantisation configs of diffusers and transformers.

Weights alone are quantised, those of linear layers; activations and whatever trains stay in the
compute dtype. ``fp8`` and ``int8`` are torchao's, ``nf4`` is bitsandbytes' (on GPUs alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dopsd.errors import ConfigError

_LIBRARIES = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}


def check_quantize(name: str, key: str, on_cpu: bool = False) -> None:
    """Raises ConfigError, in the name of ``key``, when what it needs is missing here."""
    if name == "none":
        return
    library = _LIBRARIES[name]
    if find_spec(library) is None:
        raise ConfigError(
            f"{key}: {name}, but {library} is not installed: pip install 'dopsd[quantize]', here "
            "and on every node"
        )
    if name == "nf4" and on_cpu:
        raise ConfigError(f"{key}: nf4 on the CPU, allowed: int8, fp8 or none (it needs a GPU)")


def for_transformer(name: str, dtype: torch.dtype, skeleton: Any) -> Any:
    """diffusers' config for a transformer; ``name`` is not ``none``. ``skeleton``: it without
    weights."""
    import diffusers

    keep = outside_of_blocks(skeleton)
    if name == "nf4":
        return diffusers.BitsAndBytesConfig(**_nf4(dtype), llm_int8_skip_modules=keep)
    return diffusers.TorchAoConfig(_torchao(name), modules_to_not_convert=keep)


def for_encoder(name: str, dtype: torch.dtype) -> Any:
    """transformers' config for a text encoder, or a VLM whose vision tower stays as it is; None for
    ``none``."""
    if name == "none":
        return None
    import transformers

    if name == "nf4":
        return transformers.BitsAndBytesConfig(**_nf4(dtype), llm_int8_skip_modules=["visual"])
    return transformers.TorchAoConfig(_torchao(name), modules_to_not_convert=["visual"])


def _torchao(name: str) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return {"fp8": Float8WeightOnlyConfig, "int8": Int8WeightOnlyConfig}[name]()


def _nf4(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_use_double_quant": True,
    }


def outside_of_blocks(transformer: Any) -> list[str]:
    """Names of the linear layers that belong to no repeated block, such as embedders and the last
    projection: few weights, and where a picture is most sensitive."""
    blocks = tuple(
        f"{name}."
        for name, module in transformer.named_modules()
        if type(module).__name__ in transformer._repeated_blocks
    )
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(blocks)
    ]


def is_quantized(tensor: Tensor) -> bool:
    return is_traceable_wrapper_subclass(tensor) or hasattr(tensor, "quant_state")


def as_buffers(model: nn.Module) -> int:
    """Make buffers of the quantised weights, in place, and return how many there are.

    DeepSpeed casts and broadcasts a model's parameters, and would do so to these. Every process
    quantises the same files and has the same ones.
    """
    found = 0
    for module in model.modules():
        quantized = [n for n, p in module.named_parameters(recurse=False) if is_quantized(p)]
        for name in quantized:
            weight = module._parameters.pop(name)
            assert weight is not None
            # bitsandbytes looks for its own kind of parameter, torchao for its kind of tensor.
            kept = weight if hasattr(weight, "quant_state") else weight.data
            module.register_buffer(name, kept, persistent=False)
        found += len(quantized)
    return found


def resident_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers take, quantised ones as they are kept."""
    whole = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(part.nbytes for tensor in whole.values() for part in _parts(tensor))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))
