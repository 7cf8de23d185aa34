"""What an autoscaler may make of the cluster: Ray does not know, so whoever runs it says so."""

from __future__ import annotations

import os
import re

from dopsd import shown
from dopsd.errors import ResourceError

MOST = "DOPSD_CLUSTER_MOST"
"""In the environment of a run's driver."""
_PART = re.compile(r"\s*(CPU|GPU)\s*=\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*")


def most_resources() -> dict[str, float] | None:
    """The CPUs and GPUs of all nodes, those to come too; None where nobody says so. What is said is
    all: without a GPU in it there will be none, and without a CPU no run could begin. Raises
    ResourceError."""
    text = os.environ.get(MOST)
    if not text:
        return None
    parts = [_PART.fullmatch(part) for part in text.split(",")]
    most = {"GPU": 0.0} | {part[1]: float(part[2]) for part in parts if part}
    named = [part[1] for part in parts if part]
    if len(set(named)) < len(parts) or not most.get("CPU"):
        raise ResourceError(
            f"{MOST}: {shown.value(text)}, allowed: what the cluster may grow to, its CPUs and its "
            "GPUs if any, as CPU=256,GPU=64"
        )
    return most
