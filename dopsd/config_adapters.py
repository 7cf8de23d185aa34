"""What of the model a run trains (`adapters`), and what goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dopsd.config import RunConfig

Adapters = Literal["lora", "full", "lora+modules"]


def check_adapters(config: RunConfig) -> None:
    """Raises ValueError for what ``adapters`` cannot do."""
    kind, method = config.adapters, config.method
    if kind == "lora":
        if method.teacher_sync_every != 1:
            raise ValueError(
                f"method.teacher_sync_every: {method.teacher_sync_every} with adapters: lora, "
                "allowed: 1 (a LoRA's teacher is small: it goes out with every version)"
            )
        return
    if config.inference.shared:
        raise ValueError(
            f"inference.shared: true with adapters: {kind}, allowed: false (student and teacher "
            "differ in the model's own weights, so each needs a model)"
        )
    one_model = method.objective == "sft" or method.teacher == "live"
    if config.source == "fused" and not (kind == "full" and one_model):
        allowed = "disaggregated"
        if kind == "full":
            allowed += ", or method.teacher: live, or method.objective: sft"
        raise ValueError(
            f"source: fused with adapters: {kind}, allowed: {allowed} (the teacher would need a "
            "second model in the learners)"
        )
    if kind == "lora+modules":
        if method.teacher_sync_every != 1:
            raise ValueError(
                f"method.teacher_sync_every: {method.teacher_sync_every} with adapters: {kind}, "
                "allowed: 1; adapters: full takes more"
            )
        return
    if config.lora.dora or config.lora.rank_stabilized:
        key = "dora" if config.lora.dora else "rank_stabilized"
        raise ValueError(f"lora.{key}: true with adapters: full, allowed: false (there is no LoRA)")
    if config.learner.optimizer != "adamw":
        raise ValueError(
            f"learner.optimizer: {config.learner.optimizer} with adapters: full, allowed: adamw "
            "(the teacher's average lies beside its moments)"
        )
    if config.debug.dump_trajectories:
        raise ValueError(
            f"debug.dump_trajectories: {config.debug.dump_trajectories} with adapters: full, "
            "allowed: 0 (each dump holds the weights that made it: two whole models)"
        )
    if config.source == "fused" and method.teacher_sync_every != 1:
        raise ValueError(
            f"method.teacher_sync_every: {method.teacher_sync_every} with source: fused, allowed: "
            "1 (nothing is published)"
        )
