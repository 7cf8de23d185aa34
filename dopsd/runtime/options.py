"""Options that need more than a config to be judged: refused before any cluster starts."""

from __future__ import annotations

import importlib.util
from typing import Any

from dopsd.config import RunConfig
from dopsd.errors import ConfigError
from dopsd.models.base import check_attention
from dopsd.runtime.zero import offloads_optimizer, preset_stage


def check_options(config: RunConfig, preset: dict[str, Any]) -> None:
    """Raises ConfigError or ModelError in one line for what this run cannot have.

    ``preset``: DeepSpeed's, as ``read_preset`` gives it.
    """
    check_attention(config.model.attention)
    if config.lora.dora and preset_stage(preset) == 3:
        raise ConfigError(
            "lora.dora: true with ZeRO stage 3, allowed: stage 1 or 2 (DoRA needs the norms of "
            "whole base weights in every forward, and stage 3 has cut them up)"
        )
    if config.learner.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "learner.optimizer: adamw8bit, but bitsandbytes is not installed: "
                "pip install bitsandbytes, here and on every learner's node"
            )
        if offloads_optimizer(preset):
            raise ConfigError(
                "learner.optimizer: adamw8bit with offload_optimizer in learner.deepspeed, "
                "allowed: one of both"
            )
