"""What of a run's config decides the content of its shards."""

from __future__ import annotations

from dopsd.config import DataSection
from dopsd.data.manifest import PrepareSettings


def prepare_settings(data: DataSection, seed: int) -> PrepareSettings:
    """The part of a run config that decides the content of the shards."""
    names = PrepareSettings.model_fields.keys() - {"seed"}
    return PrepareSettings(seed=seed, **{name: getattr(data, name) for name in names})
