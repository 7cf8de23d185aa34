"""The CPUs that may be used: by affinity and by cgroup, of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dopsd import cpus
from dopsd.ray_cluster.connect import local_cpus


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes files under a pretended /sys/fs/cgroup, and what /proc/self/cgroup says."""
    monkeypatch.setattr(cpus, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def write(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for path, text in files.items():
            file = tmp_path / "cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return write


def test_without_limits_they_are_the_machines(cgroups) -> None:
    assert cpus.usable() == cpus.Cpus(64, 64, None)
    cgroups("0::/\n", **{"cpu.max": "max 100000\n"})
    assert cpus.usable().usable == 64 and local_cpus() == 64


def test_a_quota_of_a_container_counts_and_a_part_is_rounded_up(cgroups) -> None:
    cgroups("0::/\n", **{"cpu.max": "250000 100000\n"})
    assert cpus.usable().quota == 2.5 and cpus.usable().usable == 3
    assert local_cpus() == 3, "a local Ray would take the host's"


def test_the_quota_of_a_group_that_holds_ours_counts_too(cgroups) -> None:
    files = {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}
    cgroups("0::/pod/box\n", **files)
    assert cpus.usable().usable == 4


def test_version_one_with_the_hosts_path_in_a_container(cgroups) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "600000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    cgroups("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n", **files)
    assert cpus.usable().usable == 6
    files["cpu,cpuacct/cpu.cfs_quota_us"] = "-1\n"
    cgroups("3:cpu,cpuacct:/docker/abc\n", **files)
    assert cpus.usable().usable == 64


def test_affinity_counts_and_ray_has_two_at_least(cgroups, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    cgroups("0::/\n", **{"cpu.max": "800000 100000"})
    assert cpus.usable().usable == 1 and local_cpus() == 2


@pytest.mark.parametrize("text", ["", "100000", "0 0", "many 100000", "100000 0"])
def test_files_of_another_form_limit_nothing(cgroups, text: str) -> None:
    cgroups("0::/\nno line of it\n", **{"cpu.max": text})
    assert cpus.usable().usable == 64
