"""Samples without a picture: texts of both roles, drawn in `data.drawn_size`."""

from __future__ import annotations

from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest
from dopsd.errors import ConfigError, DataError


def check_drawn_size(config: RunConfig) -> None:
    """Raises ConfigError for samples without a picture where something looks at pictures."""
    if config.data.drawn_size is not None and config.sees_pictures:
        raise ConfigError(
            f"data.drawn_size: {config.data.drawn_size} {_why(config)}; allowed: none, or "
            "context.name: enhanced_prompt"
        )


def check_pictures(config: RunConfig, manifest: Manifest) -> None:
    """Raises DataError, which names the first, where samples without a picture are in the data and
    something looks at pictures."""
    if manifest.without_picture and config.sees_pictures:
        count = sum(own.samples for own in manifest.without_picture.values())
        first = next(iter(manifest.without_picture.values())).first
        raise DataError(
            f"{first}: has no picture ({count} of {manifest.samples} samples have none), "
            f"{_why(config)}; allowed: context.name: enhanced_prompt, or samples with pictures"
        )


def _why(config: RunConfig) -> str:
    if config.context.needs.image:
        return f"with context.name: {config.context.name}, whose teacher sees the picture"
    return f"with method.objective: {config.method.objective}, which trains on pictures"
