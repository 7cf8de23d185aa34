"""Tensors of a checkpoint on their way from a learner's node to the storage, by real tasks."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from dopsd.checkpoint.folder import complete_steps, read_checkpoint
from dopsd.checkpoint.learner_state import FILES
from dopsd.coordinator import part_writer
from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.messages import ObjectRefBox
from dopsd.coordinator.part_writer import NodePartWriter
from dopsd.errors import DeadlineError, StorageError, WorkerError
from dopsd.files import storage
from dopsd.ray_cluster.placement import resolve_roles
from dopsd.run_folder.checkpoint_files import folder_of
from dopsd.run_folder.log import RunLog
from tests.helpers.tiny import make_config

SIZE = 2**20


class Learner:
    """Puts files into the store."""

    def put(self, count: int) -> dict[str, ray.ObjectRef]:
        return {f"{n}.safetensors": ray.put(np.full(SIZE, n, np.uint8)) for n in range(count)}


def config_of(folder, **sections):
    return make_config("base", run={"folder": str(folder)}, learner={"steps": 4}, **sections)


def writer_of(folder, alive=lambda: None) -> NodePartWriter:
    return NodePartWriter(config_of(folder), None, alive)


def test_s3_and_folders_of_whole_models_are_written_where_the_learner_is(monkeypatch, tmp_path):
    gone: set[str] = set()
    monkeypatch.setattr(part_writer, "node_of", lambda actor: actor and "the learner's")
    monkeypatch.setattr(part_writer, "on_lost_nodes", lambda nodes: len(gone & {*nodes}))
    context = SimpleNamespace(get_node_id=lambda: "the coordinator's")
    monkeypatch.setattr(part_writer.ray, "get_runtime_context", lambda: context)
    full = config_of(tmp_path)
    full.adapters = "full"
    for config, learner, node in (
        (config_of("s3://bucket/run"), "rank 0", "the learner's"),
        (config_of("s3://bucket/run"), None, "the coordinator's"),
        (full, "rank 0", "the learner's"),
        (config_of(tmp_path), "rank 0", "the coordinator's"),
    ):
        assert NodePartWriter(config, learner, lambda: None).node == node
    gone.add("the learner's")
    assert NodePartWriter(full, "rank 0", lambda: None).node == "the coordinator's"


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_on_which_ray_begins_nothing_is_written_for_by_the_coordinators(
    tmp_path, monkeypatch
):
    """As one that is announced to go between the look and the task."""
    monkeypatch.setattr(part_writer, "node_of", lambda actor: "d" * 56)
    monkeypatch.setattr(part_writer, "on_lost_nodes", lambda nodes: 0)
    writer = writer_of(tmp_path)
    records = dict(writer.write(str(tmp_path), {"a.safetensors": ray.put(b"abc")}))
    assert records["a.safetensors"].bytes == 3 and (tmp_path / "a.safetensors").exists()
    writer.check(str(tmp_path), records)
    monkeypatch.setattr(NodePartWriter, "_own", "e" * 56)
    with pytest.raises(WorkerError, match=r"^write_parts on node e{12}: TaskUnschedulable[^\n]*$"):
        list(writer.write(str(tmp_path), {"a.safetensors": ray.put(b"abc")}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_write_goes_on_when_the_learner_that_made_it_has_died(tmp_path):
    alive: list[int] = []
    learner = ray.remote(Learner).options(num_cpus=0).remote()
    refs = ray.get(learner.put.remote(6))
    writer = writer_of(tmp_path, lambda: alive.append(1))
    records = writer.write(str(tmp_path), refs)
    name, first = next(records)  # it has begun
    ray.kill(learner)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(learner.put.remote(1))
    got = {name: first, **dict(records)}
    assert list(got) == list(refs) and len(alive) == 6
    writer.check(str(tmp_path), got)
    for n, name in enumerate(refs):
        assert storage.read_bytes(str(tmp_path / name)) == bytes([n]) * SIZE
    (tmp_path / "3.safetensors").write_bytes(bytes([4]) * SIZE)
    with pytest.raises(Exception, match=r"^[^\n]*3\.safetensors: damaged"):
        writer.check(str(tmp_path), got)


@pytest.mark.usefixtures("ray_cluster")
def test_what_fails_is_one_line_and_what_nobody_wants_ends(tmp_path, monkeypatch):
    refs = {"a.safetensors": ray.put(np.zeros(10, np.uint8))}
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"^[^\n]*file: [^\n]*$"):
        list(writer_of(tmp_path).write(str(tmp_path / "file"), refs))

    def over() -> None:
        raise WorkerError("stale attempt 1")

    with pytest.raises(WorkerError, match="stale attempt 1"):
        list(writer_of(tmp_path, over).write(str(tmp_path), refs))
    late = writer_of(tmp_path)
    monkeypatch.setattr(late, "_limit", 0.0)
    monkeypatch.setattr(part_writer.ray, "wait", lambda refs, timeout: ([], refs))
    timed_out = r"/a\.safetensors: write_parts on node [0-9a-f]{12} timed out after 0 s"
    with pytest.raises(DeadlineError, match=timed_out):
        list(late.write(str(tmp_path), refs))


@pytest.mark.usefixtures("ray_cluster")
def test_of_a_checkpoint_nothing_but_records_comes_to_the_coordinator(tmp_path, monkeypatch):
    fetched, written = [], []
    get, write = ray.get, storage.write_bytes

    def counting(refs, **options):
        values = get(refs, **options)
        for value in values if isinstance(values, list) else [values]:
            fetched.append(value.nbytes if isinstance(value, np.ndarray) else len(repr(value)))
        return values

    def noting(path, data, **options):
        written.append((path.rsplit("/", 1)[-1], len(data)))
        write(path, data, **options)

    config = config_of(tmp_path)
    roles, log = resolve_roles(config, 0.0), RunLog(str(tmp_path))
    coordinator = Coordinator(config, roles, None, lambda step: 1, log)
    coordinator._learners.attempt = coordinator._budget.world = 1
    files = {name: ObjectRefBox(ray.put(np.full(SIZE, 7, np.uint8)), True) for name in FILES}
    monkeypatch.setattr(ray, "get", counting)
    monkeypatch.setattr(storage, "write_bytes", noting)
    saving = threading.Thread(target=coordinator.save, args=(1, 4, files))  # the last: it waits
    saving.start()
    saving.join(60)
    assert complete_steps(coordinator.checkpoints.root) == [4], coordinator.checkpoints.notices
    assert len(fetched) == 2 * len(FILES) and sum(fetched) < 2000
    assert sum(size for _, size in written) < 20_000
    assert not {name for name, _ in written if "safetensors" in name}
    found = read_checkpoint(folder_of(coordinator.checkpoints.root, 4))
    assert found.files == {name: bytes([7]) * SIZE for name in FILES}
