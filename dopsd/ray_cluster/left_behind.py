"""What a finished part of a program shall not leave on a cluster that goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray

from dopsd.ray_cluster.ray_private import kill_actor, living_actors


@contextlib.contextmanager
def none_left(actor_class: str) -> Iterator[None]:
    """The actors of this class that this process starts in the block end with it, and what they
    own with them, however the block ends. Those that were there before stay."""
    before = living_actors(actor_class)
    try:
        yield
    finally:
        # A cluster that went away took them along, and is no reason to fail for.
        with contextlib.suppress(Exception):
            if ray.is_initialized():
                for actor in living_actors(actor_class) - before:
                    kill_actor(actor)
