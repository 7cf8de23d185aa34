"""What a velocity would allocate and multiply at real size: the real classes, traced with fake
tensors, which have shapes and no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dopsd.config import RunConfig
from dopsd.models import Family
from dopsd.models.families.family import DTYPES
from dopsd.models.families.flux2_klein import position_ids
from dopsd.models.lora.layers import STUDENT
from dopsd.models.trained import TrainableParameters
from dopsd.plan.architecture import architecture as made_of
from dopsd.records import Context


@dataclass(frozen=True)
class Traced:
    flops: float
    peak: float
    """Bytes above weights and inputs."""
    parameters: int
    trained: int


@dataclass(frozen=True)
class Call:
    """A velocity: of ``rows`` samples, each with ``text`` tokens and ``references`` pictures of the
    size of its own."""

    rows: int = 1
    text: int = 128
    references: int = 0
    learns: bool = False
    checkpointing: bool = False
    size: tuple[int, int] = (1024, 1024)


def trace(config: RunConfig, family: Family, call: Call, **changes: Any) -> Traced:
    """``changes``: to the transformer's config, such as fewer blocks."""
    dtype = DTYPES[config.model.dtype]
    architecture = family.part_config("transformer") | changes
    with torch.device("meta"):
        model: Any = getattr(diffusers, family.transformer_class).from_config(architecture)
    model = model.to(dtype).requires_grad_(False).eval()
    bare = sum(p.numel() for p in model.parameters())
    TrainableParameters(config, family).prepare(model, (STUDENT,))
    if call.checkpointing:
        model.enable_gradient_checkpointing()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    made = torch.empty(parameter.shape, dtype=parameter.dtype)
                    grad = parameter.requires_grad and call.learns
                    module._parameters[name] = nn.Parameter(made, requires_grad=grad)
        latents, sigma = (
            torch.empty(call.rows, *family.latent_shape(*call.size)),
            torch.empty(call.rows),
        )
        width = made_of(family.name, architecture).text_width
        context = {"embeds": torch.empty(call.rows, call.text, width, dtype=dtype)}
        if call.references:
            _, h, w = family.latent_shape(*call.size)
            tokens = call.references * h * w
            context["reference"] = torch.empty(call.rows, tokens, latents.shape[1], dtype=dtype)
    # What the family reads values of is real: the mode is off while it is called.
    context["lengths"] = torch.full((call.rows,), call.text)
    if call.references:
        ids = [position_ids(h, w, time=10 * (i + 1)) for i in range(call.references)]
        context["reference_ids"] = torch.cat(ids)[None].repeat(call.rows, 1, 1)
        context["reference_lengths"] = torch.full((call.rows,), tokens)
    memory = LiveBytes([*model.parameters(), latents, sigma, *context.values()])
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    for watch in (memory, counter):  # one after the other: the counter's hooks keep tensors alive
        for parameter in model.parameters():
            parameter.grad = None
        with watch, torch.set_grad_enabled(call.learns):
            velocity = family.velocity(model, latents, sigma, Context(context))
            if call.learns:
                ((velocity - latents) ** 2).mean().backward()
    return Traced(counter.get_total_flops(), memory.peak, bare, trained)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made and that still live; ``resident`` counts not."""

    def __init__(self, resident: list[Tensor]) -> None:
        super().__init__()
        self._live = {tensor.untyped_storage()._cdata: 0 for tensor in resident}
        self._now = self.peak = 0

    def __torch_dispatch__(
        self, operator: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self._now)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


def _forward(query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, heads, queries, width = query
    return int(4 * batch * heads * queries * key[2] * width)


def _backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
    batch, heads, queries, width = query
    return int(10 * batch * heads * queries * key[2] * width)


# The CPU's fused attention, of which PyTorch's counter knows nothing: two products forward and five
# backward, as it counts CUDA's.
_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
