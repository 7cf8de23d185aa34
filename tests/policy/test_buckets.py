"""Whole models in buckets: how they are cut, and how a worker takes them in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dopsd.config import RunConfig
from dopsd.errors import AcknowledgementError, ModelError
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import cut
from dopsd.policy.bundle import Bundle, check_acknowledgement
from dopsd.policy.versions import policy_version, teacher_version
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch
from dopsd.rollout.worker import InferenceWorker
from tests.helpers.bundles import pack_bucket
from tests.helpers.tiny import make_context, random_state
from tests.learner.full_rank import full_config
from tests.learner.whole import whole_bundle


def test_buckets_keep_the_order_and_the_limit():
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 5, "f": 2}
    assert cut(sizes, 7) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert cut(sizes, 1000) == [list(sizes)]
    assert cut({}, 7) == []


def test_which_teacher_goes_with_a_step():
    # Lag 2, a teacher every 3 steps: a pure function of the step.
    versions = [teacher_version(policy_version(step, 2), 3) for step in range(10)]
    assert versions == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6]


@pytest.fixture(scope="module")
def config(tiny_base: Path) -> RunConfig:
    return full_config(str(tiny_base))


@pytest.fixture
def worker(config: RunConfig) -> InferenceWorker:
    return InferenceWorker(config, "cpu", (TEACHER,))


def model(worker: InferenceWorker, seed: int) -> dict[str, torch.Tensor]:
    return random_state(dict(worker.transformer.named_parameters()), seed)


def test_a_worker_takes_a_model_in_place_and_acknowledges_it(worker):
    state = model(worker, 1)
    bundle = whole_bundle(4, {STUDENT: state, TEACHER: state}, teacher_version=3)
    assert len(bundle.refs[TEACHER]) > 3
    own = dict(worker.transformer.named_parameters())
    places = {name: parameter.data_ptr() for name, parameter in own.items()}
    ack = worker.load_buckets(bundle, bytes)
    check_acknowledgement(bundle, ack, "teacher-0")
    assert all(torch.equal(own[name], state[name]) for name in state)
    assert {name: parameter.data_ptr() for name, parameter in own.items()} == places
    assert not any(parameter.requires_grad for parameter in own.values())


def test_a_teacher_that_did_not_change_is_not_fetched_again(worker):
    state = model(worker, 1)
    fetched: list[bytes] = []

    def fetch(reference: bytes) -> bytes:
        fetched.append(reference)
        return reference

    first = whole_bundle(4, {TEACHER: state}, teacher_version=4)
    worker.load_buckets(first, fetch)
    assert fetched == list(first.refs[TEACHER])
    again = replace(first, version=5)
    check_acknowledgement(again, worker.load_buckets(again, fetch), "teacher-0")
    assert len(fetched) == len(first.refs[TEACHER])
    assert (worker.version, worker.teacher_version) == (5, 4)
    other = whole_bundle(6, {TEACHER: model(worker, 2)}, teacher_version=6)
    check_acknowledgement(other, worker.load_buckets(other, fetch), "teacher-0")
    assert len(fetched) == 2 * len(first.refs[TEACHER])


def test_what_a_teacher_scores_names_its_version(worker):
    bundle = whole_bundle(5, {TEACHER: model(worker, 1)}, teacher_version=4)
    worker.load_buckets(bundle, bytes)
    info = SampleInfo(6, 0, ("a",), ("a cat",), 32, 48, step_samples=1)
    batch = EncodedBatch(info, make_context((9,), 0), make_context((12,), 1))
    block = pa.table({"payload": [batch.to_bytes()]})
    student = InferenceWorker(worker.config, "cpu", (STUDENT,))
    student.load_buckets(whole_bundle(5, {STUDENT: model(worker, 3)}), bytes)
    path, _ = student.generate(5, block)
    scored = TrainingBatch.from_bytes(worker.score(5, block, path)[0])
    assert (scored.policy_version, scored.teacher_version) == (5, 4)


def changed(bundle: Bundle, index: int, payload: bytes | None) -> Bundle:
    """The bundle with another payload in a bucket's place, or without the bucket."""
    refs = list(bundle.refs[TEACHER])
    refs[index : index + 1] = [] if payload is None else [payload]
    return replace(bundle, refs={TEACHER: tuple(refs)})


def test_a_wrong_bucket_is_refused(worker):
    state = model(worker, 1)
    bundle = whole_bundle(4, {TEACHER: state}, teacher_version=4)
    names = cut({n: t.numel() * 4 for n, t in state.items()}, 2**18)[1]
    damaged = {name: state[name].clone() for name in names}
    damaged[names[0]].view(-1)[0] += 1
    with pytest.raises(AcknowledgementError, match=r"teacher/00001 checksum .*, published"):
        ack = worker.load_buckets(changed(bundle, 1, pack_bucket(damaged)[0]), bytes)
        check_acknowledgement(bundle, ack, "teacher-0")
    with pytest.raises(ModelError, match=r"weights: \d+ tensors missing, e.g. "):
        worker.load_buckets(changed(bundle, 1, None), bytes)
    with pytest.raises(ModelError, match=r"weights: 1 fit no parameter, e.g. other"):
        worker.load_buckets(changed(bundle, 1, pack_bucket({"other": torch.ones(1)})[0]), bytes)
    # Half a model was bound: nobody is served by it, and the whole one is taken anew.
    assert (worker.version, worker.teacher_version) == (-1, -1)
    check_acknowledgement(bundle, worker.load_buckets(bundle, bytes), "teacher-0")
