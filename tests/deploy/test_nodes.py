"""Learners that follow nodes which come and go, and hosts that are cut off or lost: a run goes on,
and the adapter stays. One file, for the undisturbed run that both are held against."""

from __future__ import annotations

import time

import pytest

from dopsd.driver.verify import verify_run
from dopsd.run_folder.jsonl import read_lines
from tests.deploy.conftest import STEPS
from tests.deploy.hosts import hosts, why_not
from tests.deploy.nodes import Nodes, await_step, trained
from tests.helpers.loras import difference
from tests.helpers.ports import free_port

pytestmark = pytest.mark.nightly
LIMIT = 900.0
CUT_SECONDS = 30.0
PORT = 6399

ELASTIC = [
    *("learner.min_workers=1", "learner.workers=2", "learner.cpus=2", "learner.restarts=0"),
    "learner.resize_interval_s=1",
]
# Encoder, roll-out and teacher take 1.5 CPUs, and a learner 2: head and second hold one learner,
# however the roles spread, and never two; the third host holds the other.
CPUS = {"head": 1, "second": 4, "third": 2}
# As docs/faults.md says for hosts whose links may be away.
PATIENT = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "20",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    "RAY_grpc_keepalive_timeout_ms": "90000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "GLOO_SOCKET_IFNAME": "eth0",
}


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
        # Of the head's 4 CPUs the other roles take one and Ray Data another: room for one learner.
        nodes.start("head", 4, "127.0.0.1", free_port())
        nodes.wait("head")
        process = nodes.train(calm.config, run, [*ELASTIC, "inference.shared=true"])
        await_step(process, run, log, LIMIT, step=1)
        nodes.start("second", 2, "127.0.0.1", 0)
        nodes.wait("second")
        grown = await_step(process, run, log, LIMIT, attempt=2)
        await_step(process, run, log, LIMIT, attempt=2, step=grown["step"] + 3)
        before = trained(run)[-1]
        nodes.announce_end(cpus=2, seconds=300)
        shrunk = await_step(process, run, log, LIMIT, attempt=3)
        nodes.kill("second")
        code = process.wait(timeout=LIMIT)
        output = log.read_text()
        assert code == 0, output
    finally:
        nodes.stop()
    assert "2 learners in place of 1: attempt 2 resumed from step" in output
    assert "1 learners in place of 2: attempt 3 resumed from step" in output
    sizes = [line["learners"] for line in read_lines(str(run / "metrics.jsonl"))]
    assert len(sizes) == STEPS and sizes[0] == sizes[-1] == 1 and 2 in sizes
    # What was trained before the notice is not trained again, whether a checkpoint was due or not.
    assert 0 < grown["step"] <= before["step"] < shrunk["step"]
    verdict = verify_run(str(run))
    assert verdict.agrees and verdict.attempts == 3, verdict.lines()
    assert difference(calm.lora, run / "lora.safetensors") < 1e-5


@pytest.fixture(scope="module")
def three():
    if reason := why_not():
        pytest.skip(reason)
    with hosts(*CPUS) as made:
        yield made


def test_a_cut_cable_and_a_lost_host_change_nothing(three, calm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("h")
    run, log = folder / "run", folder / "train.log"
    nodes = Nodes(folder, dict(PATIENT))
    roles = [*ELASTIC, "rollout.cpus=0.5", "teacher.cpus=0.5", "timeouts.step=240"]
    try:
        for name in CPUS:
            if name != "third":
                nodes.start(name, CPUS[name], three.address[name], PORT, three.prefix(name))
                nodes.wait(name)
        process = nodes.train(calm.config, run, roles, three.prefix("head"))
        await_step(process, run, log, LIMIT, step=1)
        # The third host comes later: its room is the second learner's.
        nodes.start("third", CPUS["third"], three.address["third"], PORT, three.prefix("third"))
        nodes.wait("third")
        grown = await_step(process, run, log, LIMIT, attempt=2)
        await_step(process, run, log, LIMIT, attempt=2, step=grown["step"] + 3)

        three.cut("third")
        time.sleep(CUT_SECONDS / 3)
        before = trained(run)[-1]
        time.sleep(CUT_SECONDS * 2 / 3)
        during = trained(run)[-1]
        three.mend("third")
        after = await_step(process, run, log, LIMIT, step=before["step"] + 8)

        nodes.kill("third")
        await_step(process, run, log, LIMIT, attempt=3)
        code = process.wait(timeout=LIMIT)
        output = log.read_text()
        assert code == 0, output
    finally:
        nodes.stop()
    # Nobody trains while the cable is cut, and nobody is given up.
    assert during == before and before["attempt"] == after["attempt"] == 2
    assert "2 learners in place of 1: attempt 2" in output
    assert "1 learners in place of 2: attempt 3" in output
    sizes = [line["learners"] for line in read_lines(str(run / "metrics.jsonl"))]
    assert len(sizes) == STEPS and sizes[0] == sizes[-1] == 1 and 2 in sizes
    verdict = verify_run(str(run))
    assert verdict.agrees and verdict.attempts == 3, verdict.lines()
    assert difference(calm.lora, run / "lora.safetensors") < 1e-5
