"""Runs on one cluster of several nodes: they queue instead of blocking each other, and one on a
cluster without nodes asks for those that it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dopsd.ray_cluster.cluster_queue import LAPSE_SECONDS
from tests.deploy.autoscaled import HEAD, autoscaling_words
from tests.deploy.nodes import Nodes
from tests.helpers.ports import free_port

pytestmark = pytest.mark.nightly
RUN = ("rollout.workers=1", "learner.workers=2", "encoder.cpus=0.5", "teacher.cpus=0.5")
"""4 CPUs, and one for reading."""


@pytest.fixture
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("n"), {"RAY_health_check_period_ms": "1000"})
    try:
        yield made
    finally:
        made.stop()


def test_a_second_run_waits_for_the_first_and_names_it(nodes: Nodes) -> None:
    nodes.start("head", 2, "127.0.0.1", free_port())
    nodes.wait("head")
    nodes.start("second", 4, "127.0.0.1", 0)
    nodes.wait("second")
    nodes.reserve("a", *RUN)
    nodes.await_line("a", "placed")
    nodes.reserve("b", *RUN)
    nodes.await_line("b", "Waits for its turn on the cluster until 20")
    said = (nodes.folder / "b.log").read_text()
    assert re.search(
        r"UTC \(timeouts\.queue=86400\): the run a \(\S+, \d+\) holds encoder 1 x \(0\.5 CPU, "
        r"0 GPU\) \+ rollout .* since 20\d\d-",
        said,
    ), said
    nodes.reserve("c", *RUN, "timeouts.queue=1")
    nodes.await_line("c", "refused: no turn on the cluster (timeouts.queue=1): the run a (")

    # One that ends gives its places to the next at once, one that dies after its last beat.
    a = nodes.running["a"]
    a.stdin.close()
    began = time.time()
    assert nodes.await_line("b", "placed") - began < 20
    nodes.reserve("d", *RUN)
    nodes.await_line("d", "the run b (")
    nodes.kill("b")
    died = time.time()
    assert nodes.await_line("d", "placed") - died < LAPSE_SECONDS + 20


def test_a_worker_that_ends_with_its_node_is_known_to(nodes: Nodes) -> None:
    nodes.start("head", 1, "127.0.0.1", free_port())
    nodes.wait("head")
    nodes.start("second", 4, "127.0.0.1", 0)
    nodes.wait("second")
    nodes.module("driver", "tests.helpers.losing")
    nodes.await_line("driver", ", lost 0")
    nodes.kill("second")
    nodes.await_line("driver", "Actor")  # ActorDiedError or ActorUnavailableError
    nodes.await_line("driver", " lost 1")


def test_a_cluster_without_nodes_is_asked_for_all_of_them(nodes: Nodes) -> None:
    port = free_port()
    market = "ray.io/market-type"
    groups = {
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2},
        "kept": {"resources": {"CPU": 2}, "labels": {market: "on-demand"}, "max_workers": 2},
    }
    words = autoscaling_words(nodes.folder, f"127.0.0.1:{port}", groups)
    nodes.start("head", 0, "127.0.0.1", port, words=words, **HEAD)
    nodes.wait("head")
    nodes.environment["DOPSD_CLUSTER_MOST"] = "CPU=8,GPU=2"  # of both groups together
    run = ("source=fused", "learner.workers=2", "encoder.gpus=0")
    nodes.reserve("a", *run, f"encoder.labels={{{market}: on-demand}}", "timeouts.startup=600")
    nodes.await_line("a", "Waits for the cluster until", 180)
    # `device: auto`: GPUs, of which there are none yet.
    nodes.await_line("a", 'placed {"encoder": 0.0, "learner": 1.0}', 600)
    assert node_types(nodes) == ["gpu", "gpu", "kept"]
    # Nothing is asked for any more: what nobody uses goes again.
    nodes.running["a"].stdin.close()
    nodes.await_line("a", "gone")
    until = time.monotonic() + 180
    while node_types(nodes):
        assert time.monotonic() < until
        time.sleep(2)


def node_types(nodes: Nodes) -> list[str]:
    """Groups of the nodes that are up, beside the head."""
    look = (
        "import ray; ray.init(address='auto', logging_level='ERROR'); "
        "print(*sorted('gpu' if n['Resources'].get('GPU') else "
        "'kept' if n['Labels'].get('ray.io/market-type') == 'on-demand' else '?' "
        "for n in ray.nodes() "
        "if n['Alive'] and 'node:__internal_head__' not in n['Resources']))"
    )
    variables = nodes.environment | {"RAY_ADDRESS": nodes.address}
    return subprocess.run(
        [sys.executable, "-c", look], env=variables, check=True, capture_output=True, text=True
    ).stdout.split()
