"""The stream with real Ray Data: order, content, bounds, errors, scarce CPUs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.planning.captions import draw_caption
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.run import prepare
from dopsd.data.read import ReadSpec
from dopsd.data.stream import windowed_input
from dopsd.data.stream.block import load_encoded
from dopsd.data.stream.pipeline import encoded_stream
from dopsd.errors import DataError, DeadlineError, ModelError, WorkerError
from tests.data.encoders import BrokenFactory, FailingEncoder, PixelFactory
from tests.data.samples import SMALL, picture, write_jsonl
from tests.helpers.titles import titled

pytestmark = pytest.mark.usefixtures("ray_cluster")
SIZES = ((32, 32), (40, 28))
COUNT = 22


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Manifest, str]:
    """22 samples in two buckets, two captions each."""
    folder = tmp_path_factory.mktemp("stream")
    rows = []
    for number in range(COUNT):
        picture(number, *SIZES[number % 2]).save(folder / f"{number}.png")
        captions = {"short": f"s{number}", "long": f"a long one {number}"}
        rows.append({"image": f"{number}.png", "captions": captions})
    source = write_jsonl(folder / "set.jsonl", rows)
    settings = PrepareSettings(**SMALL, rows_per_group=4, groups_per_shard=2)
    shards = str(folder / "shards")
    return prepare(str(source), shards, settings), shards


def plan_of(data: tuple[Manifest, str], seed: int = 5) -> Plan:
    return Plan(data[0].row_groups, seed, global_batch=6, micro_batch=2)


def open_stream(
    data: tuple[Manifest, str], start: int, stop: int, **options: Any
) -> Iterator[tuple[int, int, ray.ObjectRef]]:
    options = {
        "shards": data[1],
        "read_spec": ReadSpec(),
        "encoder_factory": PixelFactory(),
        "num_cpus": 0.25,
        **options,
    }
    return encoded_stream(plan_of(data), start, stop, **options)


def identities(block: Any) -> list[str]:
    return list(load_encoded(block).info.sample_ids)


def test_order_and_content_over_epochs(data: tuple[Manifest, str]) -> None:
    plan = plan_of(data)
    assert plan.steps_per_epoch == 4
    batches = list(plan.micro_batches(1, 10))
    seen: list[str] = []
    for batch, (step, index, ref) in zip(
        batches, open_stream(data, 1, 10, workers=2, readers=3), strict=True
    ):
        assert (step, index) == (batch.step, batch.index)
        table = ray.get(ref)
        assert table.num_rows == 1 and table.column_names == ["step", "index", "payload"]
        assert (table["step"][0].as_py(), table["index"][0].as_py()) == (step, index)
        encoded = load_encoded(table)
        info = encoded.info
        assert (info.step, info.index) == (step, index)
        assert info.step_samples == plan.step(step).samples
        assert f"{info.width}x{info.height}" == batch.bucket
        assert len(info) == len(batch.rows)
        for sample, prompt, pixels in zip(
            info.sample_ids, info.prompts, encoded.teacher.tensors["pixels"], strict=True
        ):
            number = int(sample)
            assert np.array_equal(pixels.numpy(), picture(number, *SIZES[number % 2]))
            captions = {"short": f"s{number}", "long": f"a long one {number}"}
            assert prompt == draw_caption(captions, [], 5, batch.epoch, sample)
        assert encoded.student.tensors["lengths"].tolist() == [len(p) for p in info.prompts]
        if batch.epoch == 1:
            seen += info.sample_ids
    assert sorted(seen, key=int) == [str(number) for number in range(COUNT)]


def test_the_same_steps_come_again_after_a_restart(data: tuple[Manifest, str]) -> None:
    whole = [(step, identities(ray.get(ref))) for step, _, ref in open_stream(data, 0, 6)]
    short = ReadSpec(caption_keys=("short",))
    again = open_stream(data, 3, 6, workers=2, read_spec=short)
    rest = [(step, load_encoded(ray.get(ref)).info) for step, _, ref in again]
    kept = [(step, list(info.sample_ids)) for step, info in rest]
    assert kept == [entry for entry in whole if entry[0] >= 3]
    for _, info in rest:
        assert all(prompt.startswith("s") for prompt in info.prompts), "asked keys alone are drawn"


def running(log: Path) -> list[int]:
    """Processes of the encoders that noted their start in ``log``."""
    pids = [int(started.name.split("-")[0]) for started in log.iterdir()]
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]


def test_closing_ends_the_pool_and_a_task_still_receives_the_block(
    data: tuple[Manifest, str], tmp_path: Path
) -> None:
    """The blocks do not go with their encoders."""
    stream = open_stream(data, 0, 40, workers=2, encoder_factory=PixelFactory(tmp_path))
    _, _, ref = next(stream)
    assert len(running(tmp_path)) == 2
    stream.close()
    deadline = time.monotonic() + 30
    while running(tmp_path):
        assert time.monotonic() < deadline, "encoder actors outlive the stream"
        time.sleep(0.2)
    ids = ray.get(ray.remote(num_cpus=0.1)(identities).remote(ref))
    assert ids == identities(ray.get(ref)) and len(ids) == 2


def test_no_steps_give_an_empty_stream(data: tuple[Manifest, str]) -> None:
    assert list(open_stream(data, 3, 3)) == []


def test_encoders_load_once_per_actor_over_many_epochs_and_windows(
    data: tuple[Manifest, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windowed_input, "_WINDOW", 3)
    factory = PixelFactory(tmp_path)
    assert len(list(open_stream(data, 0, 16, encoder_factory=factory, workers=2))) == 48
    assert len(list(tmp_path.iterdir())) == 2


@ray.remote(num_cpus=0)
class Counter:
    """Counts what encoders have begun."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> None:
        self.count += 1

    def value(self) -> int:
        return self.count


class CountingFactory(PixelFactory):
    """Encoders that report every micro-batch."""

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.counter = counter

    def __call__(self) -> Any:
        encoder, counter = super().__call__(), self.counter
        plain = encoder.encode

        def encode(samples: Any) -> Any:
            counter.add.remote()
            return plain(samples)

        encoder.encode = encode  # type: ignore[method-assign]
        return encoder


def test_it_never_runs_further_ahead_than_asked(data: tuple[Manifest, str]) -> None:
    ahead = 5  # not the default
    counter = Counter.remote()
    stream = open_stream(data, 0, 40, encoder_factory=CountingFactory(counter), ahead=ahead)
    for taken in range(1, 8):
        next(stream)
        time.sleep(0.3)
        begun = ray.get(counter.value.remote())
        assert taken <= begun <= taken + ahead
    assert begun > 7  # it does run ahead
    stream.close()


def test_while_the_consumer_waits_it_rests_and_the_same_processes_read_on(
    data: tuple[Manifest, str],
) -> None:
    """Ray ends task workers that are idle for a second, and starts others: readers are actors.
    Without a pause the executor goes round in this process and takes a whole CPU."""
    stream = open_stream(data, 0, 12, readers=2)
    next(stream)
    first = titled("SegmentReader")
    assert len(first) == 2
    time.sleep(2)  # the window fills up
    before, began = time.process_time(), time.monotonic()
    time.sleep(2)
    assert (time.process_time() - before) / (time.monotonic() - began) < 0.4
    assert len(list(stream)) == 35
    assert titled("SegmentReader") == first
    stream.close()


def test_it_runs_while_others_hold_almost_every_cpu(data: tuple[Manifest, str]) -> None:
    """The coordinator is an actor; roll-out, teacher and learners hold the rest."""

    @ray.remote(num_cpus=0)
    class Driver:
        def run(self) -> list[tuple[int, int]]:
            return [(step, index) for step, index, _ in open_stream(data, 0, 8)]

    @ray.remote
    class Hog:
        def ready(self) -> None:
            pass

    free = ray.cluster_resources()["CPU"] - 0.4  # 0.25 for the encoder, 0.1 for one reader
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < free:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    hog = Hog.options(num_cpus=free).remote()
    ray.get(hog.ready.remote())
    try:
        driver = Driver.remote()
        keys = ray.get(driver.run.remote(), timeout=120)
    finally:
        ray.kill(hog)
    assert keys == [(batch.step, batch.index) for batch in plan_of(data).micro_batches(0, 8)]


def test_a_killed_encoder_is_replaced_and_nothing_is_lost(
    data: tuple[Manifest, str], tmp_path: Path
) -> None:
    stream = open_stream(data, 0, 12, encoder_factory=PixelFactory(tmp_path, delay=0.05))
    got = [next(stream)[:2]]
    (started,) = tmp_path.iterdir()
    os.kill(int(started.name.split("-")[0]), signal.SIGKILL)
    got += [key[:2] for key in stream]
    assert got == [(batch.step, batch.index) for batch in plan_of(data).micro_batches(0, 12)]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_hanging_encoder_ends_when_its_stream_is_closed_by_another_thread(
    data: tuple[Manifest, str], tmp_path: Path
) -> None:
    stream = open_stream(data, 0, 12, encoder_factory=PixelFactory(tmp_path, delay=0.05))
    next(stream)
    (started,) = tmp_path.iterdir()
    os.kill(int(started.name.split("-")[0]), signal.SIGSTOP)
    waiting = threading.Thread(target=lambda: list(stream), daemon=True)
    waiting.start()
    waiting.join(2)
    assert waiting.is_alive(), "nothing tells that it hangs"
    stream.close()
    waiting.join(60)
    deadline = time.monotonic() + 60
    while waiting.is_alive() or running(tmp_path):
        assert time.monotonic() < deadline, "the hanging encoder or who waits for it is still there"
        time.sleep(0.2)


def test_an_encoder_that_cannot_load_says_so(data: tuple[Manifest, str]) -> None:
    with pytest.raises(ModelError, match=r"^/models/vlm: no such folder$"):
        list(open_stream(data, 0, 2, encoder_factory=BrokenFactory()))


def test_a_pool_that_cannot_be_placed_says_so(data: tuple[Manifest, str]) -> None:
    with pytest.raises(
        DeadlineError,
        match=r"encoder timed out after .* while loading 1 actors of 900 CPUs and 0 GPUs",
    ):
        list(open_stream(data, 0, 2, num_cpus=900, start_s=3))


def test_an_encoder_that_fails_says_so(data: tuple[Manifest, str]) -> None:
    with pytest.raises(WorkerError, match=r"^encoder: RuntimeError: out of patience$"):
        list(open_stream(data, 0, 4, encoder_factory=FailingEncoder))


def test_a_missing_caption_says_so(data: tuple[Manifest, str]) -> None:
    with pytest.raises(DataError, match=r"^sample \d+: has no caption under data.caption_keys"):
        list(open_stream(data, 0, 4, read_spec=ReadSpec(caption_keys=("medium",))))
