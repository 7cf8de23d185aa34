"""Elastic learners: a node comes in the middle of a run, and is taken away with notice."""

from __future__ import annotations

import socket

import pytest

from dopsd.json_lines import read_lines
from dopsd.runtime.verify import verify_run
from tests.chaos.harness import difference
from tests.cluster.conftest import STEPS
from tests.cluster.nodes import Nodes, await_step, trained

pytestmark = pytest.mark.slow
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


def test_learners_follow_nodes_that_come_and_are_announced_to_go(calm, tmp_path_factory):
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
        await_step(process, run, log, LIMIT, attempt=2, step=grown["step"] + 3)
        nodes.announce_end(cpus=2, seconds=300)
        announced = trained(run)[-1]
        shrunk = await_step(process, run, log, LIMIT, attempt=3)
        nodes.kill("second")
        code = process.wait(timeout=LIMIT)
        output = log.read_text()
        assert code == 0, output
    finally:
        nodes.stop()
    assert "2 learners in place of 1: attempt 2 goes on from step" in output
    assert "1 learners in place of 2: attempt 3 goes on from step" in output
    sizes = [line["learners"] for line in read_lines(str(run / "metrics.jsonl"))]
    assert len(sizes) == STEPS and sizes[0] == sizes[-1] == 1 and 2 in sizes
    # What was trained before the notice is saved, though no checkpoint was due.
    assert 0 < grown["step"] <= announced["step"] < shrunk["step"]
    verdict = verify_run(str(run))
    assert verdict.agrees and verdict.attempts == 3, verdict.lines()
    assert difference(calm.lora, run / "lora.safetensors") < 1e-5
