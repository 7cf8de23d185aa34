"""What an autoscaler may make of the cluster: Ray does not know, so whoever runs it says so."""

from __future__ import annotations

import os
import re

from dopsd.errors import ResourceError

MOST = "DOPSD_CLUSTER_MOST"
"""In the environment of a run's driver."""
_PART = re.compile(r"\s*(CPU|GPU)\s*=\s*(\d+(?:\.\d+)?)\s*")


def most_resources() -> dict[str, float] | None:
    """The CPUs and GPUs of all nodes, those to come too; None where nobody says so. Raises
    ResourceError."""
    text = os.environ.get(MOST)
    if not text:
        return None
    parts = [_PART.fullmatch(part) for part in text.split(",")]
    most = {part[1]: float(part[2]) for part in parts if part}
    if len(most) < len(parts):
        raise ResourceError(
            f"{MOST}: {text!r}, allowed: what the cluster may grow to, as CPU=256,GPU=64"
        )
    return most
