"""Elastic learners: a node comes and goes in the middle of a run."""

from __future__ import annotations

import socket

import pytest

from dopsd.json_lines import read_lines
from dopsd.runtime.verify import verify_run
from tests.chaos.harness import difference
from tests.cluster.conftest import STEPS
from tests.cluster.hosts import why_not
from tests.cluster.nodes import Nodes, await_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is None, reason="test_hosts.py does the same over hosts"),
]
LIMIT = 600.0

ROLES = [
    *("learner.min_workers=1", "learner.workers=2", "learner.cpus=2", "learner.restarts=0"),
    *("learner.resize_seconds=1", "inference.shared=true"),
]
"""Of the head's 4 CPUs the other roles take one and Ray Data another: it holds a single learner."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_learners_follow_the_nodes_and_the_adapter_stays(calm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("e")
    run, log = folder / "run", folder / "train.log"
    nodes = Nodes(
        folder,
        {
            "RAY_health_check_period_ms": "1000",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
        },
    )
    try:
        nodes.start("head", 4, "127.0.0.1", free_port())
        nodes.wait("head")
        process = nodes.train(calm.config, run, ROLES)
        await_step(process, run, log, LIMIT, step=1)
        nodes.start("second", 2, "127.0.0.1", 0)
        grown = await_step(process, run, log, LIMIT, attempt=2)
        # Far enough that a checkpoint of the two is what the one goes on from.
        await_step(process, run, log, LIMIT, attempt=2, step=grown["step"] + 8)
        nodes.kill("second")
        shrunk = await_step(process, run, log, LIMIT, attempt=3)
        code = process.wait(timeout=LIMIT)
        output = log.read_text()
        assert code == 0, output
    finally:
        nodes.stop()
    assert "2 learners in place of 1: attempt 2 goes on from step" in output
    assert "1 learners in place of 2: attempt 3 goes on from step" in output
    sizes = [line["learners"] for line in read_lines(str(run / "metrics.jsonl"))]
    assert len(sizes) == STEPS and sizes[0] == sizes[-1] == 1 and 2 in sizes
    assert 0 < grown["step"] <= shrunk["step"]
    verdict = verify_run(str(run))
    assert verdict.agrees and verdict.attempts == 3, verdict.lines()
    assert difference(calm.lora, run / "lora.safetensors") < 1e-5
