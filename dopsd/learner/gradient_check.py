"""Does every trained tensor get a gradient? Looked at once, in the first step.

An operator without a backward cuts gradients off without a word: what lies before it keeps the
weights that it began with, and a loss curve need not show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.models.lora.factors import is_last


class GradientCheck:
    """Listens to the gradients of ``parameters`` until :meth:`finish`.

    Autograd's own hooks see them before DeepSpeed reduces, cuts up or drops them, at any stage.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._largest: dict[str, Tensor] = {}
        """Of the gradients so far, on their device: nothing waits for it before ``finish``."""
        self._names = tuple(parameters)
        self._hooks = [p.register_hook(partial(self._seen, name)) for name, p in parameters.items()]

    def _seen(self, name: str, gradient: Tensor) -> None:
        largest = gradient.detach().abs().amax().float()
        before = self._largest.get(name)
        self._largest[name] = largest if before is None else torch.maximum(before, largest)

    def finish(self) -> None:
        """Stop listening. Raises ModelError, which names the first of them, for tensors that got no
        gradient, and for the last factor of an adapter (a LoRA's B)
        whose gradient is zero while others' are not.

        A gradient of zero is right elsewhere: A's while B is zero, a padding token's where nothing
        was padded, and all of them where student and target agree.
        """
        for hook in self._hooks:
            hook.remove()
        seen = self._largest
        largest = dict(zip(seen, torch.stack([*seen.values()]).tolist())) if seen else {}
        moved = any(largest.values())
        missing = [
            name
            for name in self._names
            if name not in largest or (moved and is_last(name) and largest[name] == 0.0)
        ]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(
                f"{missing[0]}{more} of {len(self._names)} trained tensors got no gradient in the "
                "first step, so that they would never be trained: an operator of the model has no "
                "backward; allowed: learner.attention=native, and no attention backend or kernel "
                "that is for inference alone"
            )
