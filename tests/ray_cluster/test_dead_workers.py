"""Ray knows which processes of a job died, and their logs are read where they lived."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import ray

from dopsd.ray_cluster.dead_workers import dead_workers, log_tail, tails


def test_a_killed_actor_leaves_its_log(ray_cluster) -> None:
    class Doomed:
        def speak(self) -> int:
            print("last words", file=sys.stderr, flush=True)
            return os.getpid()

    class AskedToGo(Doomed):
        pass

    doomed = ray.remote(type("TeacherWorker", (Doomed,), {})).options(num_cpus=0).remote()
    leaving = ray.remote(AskedToGo).options(num_cpus=0).remote()
    pid = ray.get(doomed.speak.remote())
    left = ray.get(leaving.speak.remote())
    ray.kill(leaving)
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while not (found := [worker for worker in dead_workers() if worker.pid == pid]):
        assert time.monotonic() < until, dead_workers()
        time.sleep(0.2)
    (worker,) = found
    assert worker.role == "teacher" and worker.why
    tail = log_tail(worker)
    assert tail is not None and b"last words" in tail
    assert left not in [worker.pid for worker in dead_workers()], "it was asked to go"
    assert pid not in [worker.pid for worker in dead_workers(time.time() + 60)], "before that time"
    assert pid in [worker.pid for worker in dead_workers(time.time() - 600)]


def test_the_ends_of_logs_come_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "worker-1.out").write_text("out\n")
    (tmp_path / "worker-1.err").write_text("x" * 10**6 + "end\n")
    (tmp_path / "worker-1.other").write_text("no log")
    text = tails(tmp_path.iterdir()).decode()
    assert (
        text.startswith("==> worker-1.err <==\nxxx")
        and "xend\n\n==> worker-1.out <==\nout\n" in text
    )
    assert len(text) < 70_000
