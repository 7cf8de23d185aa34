"""What a run's objects are called."""

from __future__ import annotations

import re

from dopsd.config import RunConfig
from dopsd.errors import ConfigError

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BUCKET = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[\w.,=+-]+)*/?")
_LONGEST = 47
"""Characters of a RayJob's name; KubeRay appends to it."""


def name_of(config: RunConfig) -> str:
    """The run's name, as Kubernetes takes names. Raises ConfigError for one that cannot be."""
    name = re.sub(r"[^a-z0-9]+", "-", config.run.name.lower()).strip("-")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"run.name: {config.run.name!r}, allowed for a job: letters, digits and "
            f"hyphens, a letter first, at most {_LONGEST}"
        )
    return name


def is_bucket(folder: str) -> bool:
    """Whether it is s3://BUCKET or s3://BUCKET/FOLDER, without credentials."""
    return bool(_BUCKET.fullmatch(folder)) and ".." not in folder.split("/")
