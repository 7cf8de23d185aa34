"""A crew of real actors: every job once, errors as their own line, restarts, deadlines."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dopsd.errors import DeadlineError, ModelError, WorkerError
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role


class Worker:
    def __init__(self, folder: str) -> None:
        if folder == "broken":
            raise ModelError("broken: no such folder")
        self.folder = Path(folder)

    def double(self, number: int) -> int:
        return 2 * number

    def refuse(self) -> None:
        raise ModelError("x.safetensors: no LoRA that loads")

    def fail(self) -> None:
        raise RuntimeError("out of paper")

    def die_once(self) -> str:
        mark = self.folder / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return "alive"

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def crew(folder, workers=1, **limits):
    role = Role("painter", workers, 0.5, 0.0)
    options = {"start_s": 60.0, "step_s": 60.0, "restarts": 1, **limits}
    return JobPool(Worker, (str(folder),), role, **options)


def run(painters, *jobs):
    found = {}
    with painters:
        painters.run(jobs, lambda job, value: found.update({job.what: value}))
    return found


def test_every_job_is_done_once_by_several_workers(ray_cluster, tmp_path):
    jobs = [Job(f"job {n}", "double", (n,)) for n in range(9)]
    assert run(crew(tmp_path, 2), *jobs) == {f"job {n}": 2 * n for n in range(9)}
    assert run(crew(tmp_path)) == {}


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("refuse", ModelError, r"^x.safetensors: no LoRA that loads$"),
        ("fail", WorkerError, r"^painter-0, a job: RuntimeError: out of paper$"),
    ],
)
def test_a_failure_is_its_own_line(ray_cluster, tmp_path, method, kind, message):
    with pytest.raises(kind, match=message):
        run(crew(tmp_path), Job("a job", method, ()))


def test_a_crew_goes_on_after_a_failed_job(ray_cluster, tmp_path):
    found = []
    with crew(tmp_path, 2) as painters:
        with pytest.raises(ModelError):
            painters.run(
                [Job("a nap", "sleep", (60.0,)), Job("a job", "refuse", ())], lambda *_: None
            )
        painters.run([Job("a job", "double", (4,))], lambda job, value: found.append(value))
    assert found == [8]


def test_a_worker_that_cannot_start_says_why(ray_cluster):
    with pytest.raises(WorkerError, match=r"^painter-0: .*broken: no such folder$"):
        run(crew("broken"), Job("a job", "double", (1,)))


def test_a_worker_that_dies_is_replaced_and_its_job_done_again(ray_cluster, tmp_path):
    assert run(crew(tmp_path), Job("a job", "die_once", ())) == {"a job": "alive"}


def test_a_worker_that_dies_without_restarts_is_told(ray_cluster, tmp_path):
    with pytest.raises(WorkerError, match=r"painter-0 died at a job: .*; restart budget exhausted"):
        run(crew(tmp_path, restarts=0), Job("a job", "die_once", ()))


def test_a_late_worker_is_named_with_what_it_does(ray_cluster, tmp_path):
    jobs = Job("warm-up", "double", (1,)), Job("a nap", "sleep", (60.0,))
    with pytest.raises(DeadlineError, match=r"painter-0 timed out after 1 s while a nap"):
        run(crew(tmp_path, step_s=1.0, restarts=0), *jobs)


def test_a_worker_that_does_not_start_is_late(ray_cluster, tmp_path):
    message = (
        r"painter-0 timed out after 0.5 s while starting up for a nap; restart budget exhausted"
    )
    with pytest.raises(DeadlineError, match=message):
        run(crew(tmp_path, start_s=0.5, restarts=0), Job("a nap", "sleep", (60.0,)))
