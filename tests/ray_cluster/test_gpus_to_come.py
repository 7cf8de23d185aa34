"""`device: auto` reckons with GPUs that are late, and never with those that cannot come."""

from __future__ import annotations

import math

import pytest

from dopsd.ray_cluster import connect
from dopsd.ray_cluster.connect import gpus_to_come


@pytest.mark.parametrize(
    ("now", "most", "private", "asked", "gpus"),
    [
        (2.0, {"GPU": 8.0}, False, True, 2.0),
        (0.0, {"CPU": 64.0, "GPU": 8.0}, False, False, 8.0),
        (0.0, {"CPU": 64.0, "GPU": 0.0}, False, False, 0.0),
        (0.0, {"CPU": 64.0, "GPU": 0.0}, False, True, 0.0),
        (0.0, None, False, False, 0.0),
        (0.0, None, False, True, math.inf),
        (0.0, None, True, True, 0.0),
    ],
)
def test_gpus_that_a_cluster_may_still_get(monkeypatch, now, most, private, asked, gpus) -> None:
    monkeypatch.setattr(connect, "cluster_resources", lambda: {"CPU": 1.0, "GPU": now})
    monkeypatch.setattr(connect, "most_resources", lambda: most)
    monkeypatch.setattr(connect, "is_private", lambda: private)
    assert gpus_to_come(asked) == gpus
