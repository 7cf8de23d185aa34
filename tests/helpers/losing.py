"""An actor that needs a node of 4 CPUs, and what is said of its end."""

from __future__ import annotations

import sys
import time

import ray

from dopsd.ray_cluster.connect import connect
from dopsd.ray_cluster.lost_nodes import node_of, on_lost_nodes


class Worker:
    def wait(self) -> None:
        time.sleep(3600)


def say(line: str) -> None:
    print(f"{time.time():.1f} {line}", flush=True)


def main() -> None:
    connect()
    actor = ray.remote(num_cpus=4)(Worker).remote()
    ray.get(actor.__ray_ready__.remote())
    node = node_of(actor)
    say(f"on {node}, lost {on_lost_nodes([node])}")
    try:
        ray.get(actor.wait.remote())
    except ray.exceptions.RayError as error:
        say(type(error).__name__)
    # The node may be known to be gone only some seconds later.
    while not (lost := on_lost_nodes([node_of(actor), None])):
        time.sleep(1)
    say(f"lost {lost}")
    sys.stdin.read()


if __name__ == "__main__":
    main()
