"""The coordinator with real actors on a tiny real base, and a learner that only publishes."""

from __future__ import annotations

import os
import signal
import threading
import time

import pyarrow as pa
import pytest
import ray
import torch

from dopsd.coordinator import worker_pool as pool_module
from dopsd.coordinator.coordinator import Coordinator
from dopsd.data.stream.block import load_encoded
from dopsd.errors import AcknowledgementError, DeadlineError, WorkerError
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.policy.bundle import Acknowledgement, Bundle
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch, Trajectory
from dopsd.rollout.worker import InferenceWorker
from dopsd.run_folder.log import RunLog
from tests.helpers.bundles import made_bundle
from tests.helpers.shares import whole_share
from tests.helpers.tiny import make_config, make_context, random_state

STEPS, PER_STEP, SIDE, LAG = 5, 2, 16, 2
SHARED = {"shared": True}
"""One pool that rolls out and scores: one process of the test instead of two."""

pytestmark = pytest.mark.usefixtures("ray_cluster")


def encoded(step: int, index: int) -> pa.Table:
    """An encoded micro-batch as the stream delivers it, of two samples."""
    names = tuple(f"sample-{step}-{index}-{row}" for row in range(2))
    info = SampleInfo(step, index, names, ("a", "b"), SIDE, SIDE, 2 * PER_STEP)
    seed = step * 10 + index
    batch = EncodedBatch(info, make_context((5, 7), seed), make_context((9, 6), seed + 1000))
    return pa.table({"step": [step], "index": [index], "payload": [batch.to_bytes()]})


def stream(start: int, stop: int):
    for step in range(start, stop):
        for index in range(PER_STEP):
            yield step, index, ray.put(encoded(step, index))


def config_of(base, tmp_path, **sections):
    sections.setdefault("rollout", {})
    sections.setdefault("teacher", {})
    for role in ("rollout", "teacher"):
        sections[role] = {"cpus": 0.2} | sections[role]
    lag = sections.pop("lag", 0)
    config = make_config(
        base,
        run={"folder": str(tmp_path)},
        lora={"rank": 4, "alpha": 8},
        method={"steps": 2},
        learner={"steps": STEPS, "global_batch": 4, "micro_batch": 2},
        **sections,
    )
    config.max_policy_lag = lag
    return config


@pytest.fixture(scope="module")
def parameters(tiny_base):
    family = FAMILIES["z_image"](str(tiny_base))
    transformer = family.load_transformer(torch.float32, "cpu")
    inject(transformer, resolve_targets(transformer, "default", family.lora_targets), 4, 8, 0)
    return {name: p.detach() for name, p in adapter_parameters(transformer, STUDENT).items()}


def bundle_of(parameters, version: int, put=ray.put) -> Bundle:
    student, teacher = random_state(parameters, version), random_state(parameters, version + 500)
    return made_bundle(version, student, teacher, torch.float32, put)


def run(config, parameters, during=None) -> dict[tuple[int, int], bytes]:
    """Every scored micro-batch of a run whose learner publishes made-up weights."""
    coordinator = Coordinator(
        config,
        resolve_roles(config, 0.0),
        stream,
        lambda step: PER_STEP,
        RunLog(config.run.folder),
    )
    coordinator.start()
    try:
        results = {}
        attempt = coordinator.attach()
        coordinator.publish(attempt, bundle_of(parameters, 0))
        for step in range(STEPS):
            if during:
                during(coordinator, step)
            for index, box in enumerate(whole_share(coordinator, attempt, step)):
                results[(step, index)] = ray.get(box.ref)
            coordinator.publish(attempt, bundle_of(parameters, step + 1))
        counts = coordinator.status().counts
        assert counts.trained == counts.planned == STEPS * PER_STEP
        return results
    finally:
        coordinator.stop()


@pytest.fixture(scope="module")
def undisturbed(tiny_base, parameters, tmp_path_factory):
    return run(config_of(tiny_base, tmp_path_factory.mktemp("run")), parameters)


@pytest.fixture(scope="module")
def late(tiny_base, parameters, tmp_path_factory):
    """The run folder and the batches of a run at lag 2."""
    folder = tmp_path_factory.mktemp("late")
    config = config_of(tiny_base, folder, lag=LAG, debug={"dump_trajectories": 3})
    return folder, run(config, parameters)


@pytest.mark.parametrize("lag", [0, LAG])
def test_every_step_is_generated_by_exactly_its_version(lag, undisturbed, late):
    for (step, _), payload in (late[1] if lag else undisturbed).items():
        batch = TrainingBatch.from_bytes(payload)
        assert batch.policy_version == batch.teacher_version == max(0, step - lag)


def test_states_from_device_to_device_change_no_bit(undisturbed, tiny_base, parameters, tmp_path):
    """Over gloo; a worker that dies on the way closes the hop, and the run says so."""
    config = config_of(tiny_base, tmp_path, transport="rdt", rollout={"workers": 2})
    seen = []

    def during(coordinator, step):
        if step == 2:
            seen.extend(coordinator.status().notices)
            ray.kill(coordinator.workers("rollout")[0])
        if step == STEPS - 1:
            seen.extend(coordinator.status().notices)

    assert run(config, parameters, during) == undisturbed
    assert seen[0].startswith("transport: rdt over gloo from rollout to teacher")
    assert len(set(seen)) == 2 and "fell back to the object store: " in seen[-1]


def test_a_shared_pool_changes_no_bit_and_has_nothing_to_carry(
    undisturbed, tiny_base, parameters, tmp_path
):
    config = config_of(tiny_base, tmp_path, transport="rdt", inference=SHARED)
    seen = []
    run_of = run(
        config, parameters, lambda coordinator, _: seen.extend(coordinator.status().notices)
    )
    assert run_of == undisturbed
    assert set(seen) == {
        "transport: rdt has nothing to carry: no trajectory travels between two pools here"
    }


def test_a_changed_adapter_changes_the_next_rollout(tiny_base, parameters):
    worker = InferenceWorker(config_of(tiny_base, "unused"), "cpu", (STUDENT, "teacher"))
    finished = []
    for version in (0, 1):
        refs = bundle_of(parameters, version, bytes).refs
        worker.load(version, refs[STUDENT], refs["teacher"])
        payload, _ = worker.generate(version, encoded(0, 0))
        finished.append(Trajectory.from_bytes(payload).states)
    assert torch.equal(finished[0][0], finished[1][0]), "same noise"
    assert not torch.allclose(finished[0][-1], finished[1][-1])


def test_a_worker_serves_only_what_it_has_acknowledged(tiny_base, parameters):
    worker = InferenceWorker(config_of(tiny_base, "unused"), "cpu", (STUDENT,))
    with pytest.raises(AcknowledgementError, match="version 0, but -1 is bound"):
        worker.generate(0, encoded(0, 0))


@pytest.mark.integration
def test_neither_more_workers_nor_killed_ones_change_a_bit(
    undisturbed, tiny_base, parameters, tmp_path
):
    config = config_of(tiny_base, tmp_path, rollout={"workers": 2}, teacher={"workers": 2})

    def kill(coordinator, step):
        if step in (1, 3):
            worker = coordinator.workers("rollout" if step == 1 else "teacher")[0]
            pid = ray.get(worker.__ray_call__.remote(lambda self: os.getpid()))
            os.kill(pid, signal.SIGKILL)

    assert run(config, parameters, during=kill) == undisturbed


def lying(**change):
    """A worker class whose acknowledgement is wrong in one respect."""

    class Liar(InferenceWorker):
        def load(self, *payloads):
            ack = super().load(*payloads)
            return Acknowledgement(**{**ack.__dict__, **change})

    return Liar


def test_a_wrong_acknowledgement_stops_the_run(tiny_base, parameters, tmp_path, monkeypatch):
    """What may be wrong with one is tested in tests/policy/test_bundle.py."""
    liar = lying(checksums={"student": "f" * 64})
    monkeypatch.setattr(pool_module, "InferenceWorker", liar)
    with pytest.raises(AcknowledgementError, match="rollout-0 acknowledged student checksum ffff"):
        run(config_of(tiny_base, tmp_path, inference=SHARED), parameters)


def test_a_workers_own_message_reaches_the_user(tiny_base, parameters, tmp_path, monkeypatch):
    class Broken(InferenceWorker):
        def generate_and_score(self, version, block):
            raise RuntimeError("matrix is on fire")

    monkeypatch.setattr(pool_module, "InferenceWorker", Broken)
    with pytest.raises(WorkerError, match=r"^rollout-0: RuntimeError: matrix is on fire$"):
        run(config_of(tiny_base, tmp_path, inference=SHARED), parameters)


def test_a_hung_worker_is_named_with_what_it_was_doing(
    tiny_base, parameters, tmp_path, monkeypatch
):
    class Hung(InferenceWorker):
        def generate_and_score(self, version, block):
            threading.Event().wait(60)

    monkeypatch.setattr(pool_module, "InferenceWorker", Hung)
    inference = SHARED | {"max_restarts": 0}
    timeouts = {"step": 1.0, "startup": 60}
    config = config_of(tiny_base, tmp_path, timeouts=timeouts, inference=inference)
    began = time.monotonic()
    with pytest.raises(
        DeadlineError,
        match=r"rollout-0 timed out after \d+ s while generating and scoring step 0",
    ):
        run(config, parameters)
    assert time.monotonic() - began < 55


@pytest.mark.integration
def test_a_worker_that_hangs_is_replaced_and_nothing_changes(
    undisturbed, tiny_base, parameters, tmp_path, monkeypatch
):
    marker = tmp_path / "hung"

    class HangsOnce(InferenceWorker):
        def generate_and_score(self, version, block):
            if version == 2 and not marker.exists():
                marker.touch()
                threading.Event().wait(600)
            return super().generate_and_score(version, block)

    monkeypatch.setattr(pool_module, "InferenceWorker", HangsOnce)
    timeouts = {"step": 4.0, "startup": 120}
    config = config_of(
        tiny_base, tmp_path / "run", timeouts=timeouts, inference=SHARED | {"max_restarts": 1}
    )
    (tmp_path / "run").mkdir()
    assert run(config, parameters) == undisturbed
    assert marker.exists()


def test_a_worker_that_cannot_start_tells_why(tiny_base, parameters, tmp_path, monkeypatch):
    class Unable(InferenceWorker):
        def __init__(self, *arguments):
            raise RuntimeError("no room on this GPU")

    monkeypatch.setattr(pool_module, "InferenceWorker", Unable)
    with pytest.raises(WorkerError, match="rollout-0 died: RuntimeError: no room on this GPU"):
        run(config_of(tiny_base, tmp_path, inference=SHARED), parameters)


def test_fetch_is_idempotent_and_pads_with_zero_weight(tiny_base, parameters, tmp_path):
    config = config_of(tiny_base, tmp_path, inference=SHARED)
    config.learner.global_batch = 6  # three micro-batches a step, but the plan has only two
    coordinator = Coordinator(
        config, resolve_roles(config, 0.0), stream, lambda step: PER_STEP, RunLog(str(tmp_path))
    )
    coordinator.start()
    try:
        attempt = coordinator.attach()
        coordinator.publish(attempt, bundle_of(parameters, 0))
        boxes = [whole_share(coordinator, attempt, 0, rank, 2) for rank in (0, 1, 1)]
        assert [[box.real for box in share] for share in boxes] == [
            [True, False],
            [True, False],
            [True, False],
        ]
        assert boxes[1][0].ref == boxes[2][0].ref
    finally:
        coordinator.stop()


def test_trajectory_dumps_are_self_describing(late):
    from dopsd.method.noise import sample_noise
    from dopsd.records import unpack

    folder, results = late
    assert TrainingBatch.from_bytes(results[(0, 0)]).finished is not None
    files = sorted((folder / "debug" / "trajectories").iterdir())
    assert [file.name for file in files] == [
        f"step{step:06d}-mb{index:03d}.safetensors" for step, index in [(0, 0), (0, 1), (1, 0)]
    ]
    tensors, meta = unpack(files[2].read_bytes())
    batch = TrainingBatch.from_bytes(results[(1, 0)])
    assert meta["sample_ids"] == ["sample-1-0-0", "sample-1-0-1"]
    assert meta["policy_version"] == 0 and meta["prompts"] == ["a", "b"]
    assert torch.equal(tensors["states"][:-1], batch.states)
    assert torch.equal(tensors["target_velocity"], batch.target_velocity)
    again = sample_noise(meta["seed"], meta["step"], meta["sample_ids"][1], (4, 8, 8))
    assert torch.equal(tensors["noise"][1], again)
    teacher = load_encoded(encoded(1, 0)).teacher
    assert torch.equal(tensors["teacher.embeds"], teacher.tensors["embeds"])
