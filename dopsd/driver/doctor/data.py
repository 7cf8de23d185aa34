"""Whether what a config trains on is there."""

from __future__ import annotations

from dopsd.config import RunConfig
from dopsd.data.known_concepts import refuse_unknown_concepts
from dopsd.data.manifest import has_manifest
from dopsd.driver.doctor.finding import Finding, ok
from dopsd.driver.setup.checks import refuse_missing_source
from dopsd.errors import ConfigError, DataError


def check_data(config: RunConfig) -> list[Finding]:
    """That the source or the shards are there, and have the concepts that the config names."""
    try:
        refuse_missing_source(config)
        refuse_unknown_concepts(config)
    except (ConfigError, DataError) as error:
        return [Finding("data", "stop", str(error))]
    if has_manifest(config.shards):
        return [ok("data", f"{config.shards}: prepared")]
    return [ok("data", f"{config.data.source}: there, not prepared yet")]
