"""Activation checkpointing of some of a transformer's blocks: memory against computing again."""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import checkpoint


def checkpoint_every(transformer: Any, every: int) -> None:
    """Recompute each ``every``-th block in the backward, counted through the blocks of all kinds in
    the order of the model; 0: none."""
    if not every:
        return
    blocks = [m for m in transformer.modules() if type(m).__name__ in transformer._repeated_blocks]
    chosen = {id(block) for block in blocks[::every]}

    def call(block: Any, *arguments: Any) -> Any:
        if id(block) not in chosen:
            return block(*arguments)
        return checkpoint(block.__call__, *arguments, use_reentrant=False)

    transformer.enable_gradient_checkpointing(call)
