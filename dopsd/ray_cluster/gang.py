"""All workers of several roles, asked for at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group

from dopsd.ray_cluster.placement import Role


class Gang:
    """A placement group of every worker without which ``roles`` do not start, in a ``with`` block.

    While it is pending, Ray's autoscaler counts it as what has to come, labels included, and it
    holds nothing until all of it is free together; afterwards the roles take the places
    themselves. (`ray.autoscaler.sdk.request_resources` keeps one request for the whole cluster,
    which Ray Data and Ray Train write over while a run streams.) It ends with the process.
    """

    def __init__(self, roles: Sequence[Role]) -> None:
        self._group: Any = None
        asked = [
            ({kind: n for kind, n in (("CPU", role.cpus), ("GPU", role.gpus)) if n}, role.labels)
            for role in roles
            for _ in range(role.needed)
        ]
        if asked := [(bundle, labels) for bundle, labels in asked if bundle]:
            bundles, labels = zip(*asked)
            chosen = {"bundle_label_selector": [dict(each) for each in labels]}
            self._group = placement_group(list(bundles), **(chosen if any(labels) else {}))

    def __enter__(self) -> Gang:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._group is not None:
            with suppress(RayError):  # a cluster that went away took it along
                remove_placement_group(self._group)

    def is_placed(self, seconds: float) -> bool:
        """Whether all of it found places, after ``seconds`` at most."""
        return self._group is None or bool(self._group.wait(seconds))
