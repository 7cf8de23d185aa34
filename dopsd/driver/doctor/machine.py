"""What any run needs of this machine: CPUs, shared memory, and room on its disks."""

from __future__ import annotations

import os
import shutil
import tempfile

from dopsd import cpus
from dopsd.checkpoint.room import RoomNeeded
from dopsd.config import RunConfig
from dopsd.driver.doctor.finding import Finding, Level, ok
from dopsd.errors import ConfigError
from dopsd.files import disk, storage
from dopsd.plan import Plan
from dopsd.ray_cluster.connect import local_cpus, starts_here

SHARED_MEMORY = "/dev/shm"
_DOCKERS = 64 * 2**20
"""What Docker gives a container unless it is told otherwise. NCCL's channels do not fit in."""
_OBJECTS = 2 * 2**30
"""Bytes of shared memory with which Ray's object store is content where no plan says more."""
_SPILL = 0.05
"""Share of its disk that Ray keeps free: beyond it nothing is spilled any more."""
_MORE = "docker run --shm-size=8g, or on Kubernetes an emptyDir with medium: Memory at /dev/shm"


def check_cpus() -> Finding:
    """Against the count that a local Ray takes."""
    found = cpus.usable()
    limits = [f"{found.machine} of the machine"]
    if found.allowed < found.machine:
        limits.append(f"{found.allowed} by affinity")
    if found.quota is not None:
        limits.append(f"{found.quota:g} by cgroup")
    words = f"{found.usable} usable ({', '.join(limits)})"
    if starts_here():
        words += f"; a local Ray takes {local_cpus()}"
    if found.usable < 2:
        return Finding("cpus", "do", words, "give it 2: roles share one, and each step waits")
    return ok("cpus", words)


def check_shared_memory(config: RunConfig | None, plan: Plan | None) -> Finding:
    """Ray keeps objects there, NCCL its channels."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return Finding(
            "/dev/shm", "do", "missing", f"Ray keeps objects on disk, which is slow: {_MORE}"
        )
    needed = _OBJECTS
    if config is not None and plan is not None:
        # Of each step that is under way, and of the one that is read.
        needed = int(plan.traffic.object_store * (config.max_policy_lag + 2))
    words = f"{disk.megabytes(usage.free)} of {disk.megabytes(usage.total)} free"
    collective = config is not None and config.device != "cpu" and config.learner.workers > 1
    if usage.total <= _DOCKERS:
        level: Level = "stop" if collective else "do"
        return Finding("/dev/shm", level, f"{words}, too little for NCCL and Ray", _MORE)
    if usage.free < needed:
        words += f", a run's objects take {disk.megabytes(needed)}"
        return Finding("/dev/shm", "do", words, f"more of it, or Ray spills to disk: {_MORE}")
    return ok("/dev/shm", words)


def check_disks(config: RunConfig | None, plan: Plan | None, missing_gb: float) -> list[Finding]:
    """Of the run folder, of downloads (``missing_gb`` are not there yet), and of Ray's files."""
    findings = [_room_for_ray()]
    if config is not None:
        findings.append(_room_for_downloads(missing_gb))
        if not storage.is_remote(config.run.folder):
            findings.append(_room_for_run(config, plan))
    return findings


def _room_for_ray() -> Finding:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    usage = shutil.disk_usage(disk.mount_point(folder))
    words = f"{folder}: {disk.free_space(folder)}"
    if usage.free < _SPILL * usage.total:
        return Finding(
            "disk for Ray",
            "do",
            f"{words}, less than {_SPILL:.0%}",
            "make room, or RAY_TMPDIR on another disk: on a full one Ray spills no objects",
        )
    return ok("disk for Ray", words)


def _room_for_downloads(missing_gb: float) -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    words = f"{HF_HUB_CACHE}: {disk.free_space(HF_HUB_CACHE)}"
    if missing_gb * 1e9 > disk.free_bytes(HF_HUB_CACHE):
        return Finding(
            "disk for models",
            "stop",
            f"{words}, models to download take {missing_gb:.0f} GB",
            "make room, or HF_HOME on another disk",
        )
    return ok("disk for models", f"{words}, to download: {missing_gb:.0f} GB")


def _room_for_run(config: RunConfig, plan: Plan | None) -> Finding:
    folder, name = config.run.folder, "disk for the run"
    try:
        storage.check_writable("run.folder", folder)
    except ConfigError as error:
        return Finding(name, "stop", str(error))
    words = f"{folder}: {disk.free_space(folder)}"
    if plan is None:
        return ok(name, words)
    needed = RoomNeeded.of(config, plan.demand.trained)
    kept = config.checkpoint.keep_last * needed.checkpoint + needed.export
    if disk.free_bytes(folder) < needed.checkpoint + needed.export:
        found = f"{words}, a checkpoint and the export take "
        found += disk.megabytes(needed.checkpoint + needed.export)
        return Finding(name, "stop", found, "make room, or run.folder on another disk or s3://")
    if disk.free_bytes(folder) < kept + needed.checkpoint:
        found = f"{words}, {config.checkpoint.keep_last} checkpoints and the export take "
        return Finding(name, "do", found + disk.megabytes(kept), "make room: saving will fail")
    return ok(name, words)
