"""Failures as one line each, whatever wraps them."""

import errno
import os
import signal

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from dopsd.errors import DataError, WorkerError
from dopsd.ray_cluster.failures import full_disk, unwrap_error


def test_a_killed_process_is_told_in_one_line_also_by_ray_train(ray_cluster):
    @ray.remote(num_cpus=0)
    class Victim:
        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RayActorError) as caught:
        ray.get(Victim.remote().die.remote(), timeout=60)
    wrapped = WorkerHealthCheckFailedError(
        "A worker health check failed.\n  actor=...", caught.value
    )
    for error in (caught.value, wrapped):
        told = unwrap_error(error, "learner rank 0")
        assert isinstance(told, WorkerError)
        assert str(told).startswith("learner rank 0: The actor is dead because its worker process")
        assert "\n" not in str(told) and "common causes" not in str(told)


def test_errors_of_ours_come_through_as_they_are(ray_cluster):
    @ray.remote(num_cpus=0)
    def refuse():
        raise DataError("shard 3: broken")

    with pytest.raises(RayTaskError) as caught:
        ray.get(refuse.remote(), timeout=60)
    for error in (caught.value, UserExceptionWithTraceback(DataError("shard 3: broken"), "frames")):
        told = unwrap_error(error, "encoder")
        assert isinstance(told, DataError) and str(told) == "shard 3: broken"


def test_a_full_disk_is_found_whoever_met_it_and_nothing_else_is_one():
    full = OSError(errno.ENOSPC, "No space left on device", "/scratch/cache")
    assert "/scratch/cache: No space left on device (ENOSPC); disk /" in str(full_disk(full))
    wrapped = RuntimeError("the archive could not be written")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "Disk quota exceeded; temporary files lie on disk" in str(full_disk(wrapped))
    assert full_disk(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert full_disk(RuntimeError("out of memory")) is None
