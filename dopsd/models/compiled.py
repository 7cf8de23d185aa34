"""torch.compile of a transformer's blocks."""

from __future__ import annotations

from typing import Any

import torch

from dopsd.models.rotary import use_real_rotary


def compile_blocks(transformer: Any, backend: str = "inductor") -> None:
    """torch.compile of each repeated block, in place, for any batch and any number of tokens:
    one compilation serves all blocks of a kind, and parameters may change afterwards. Call it after
    the attention backend was chosen."""
    # A kind of block is compiled for each adapter, with and without gradients, and for batches of
    # one apart; past the usual limit of 8, blocks would run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    use_real_rotary(transformer)
    transformer.compile_repeated_blocks(dynamic=True, backend=backend)
