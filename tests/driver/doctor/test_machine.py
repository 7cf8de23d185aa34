"""Findings on a machine that is pretended: GPUs, shared memory, disks, versions."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopsd import cpus, gpus
from dopsd.config import RunConfig, load_config
from dopsd.driver.doctor import gpu, machine, versions
from dopsd.driver.doctor.examine import examine
from dopsd.driver.doctor.finding import Finding, lines, record, stops
from dopsd.plan import make_plan

MIB = 2**20


def config(name: str, *overrides: str) -> RunConfig:
    return load_config(name, list(overrides))


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


class Pretended:
    """GPUs as nvidia-smi lists them, torch's build, and what the probe says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus = [gpus.Gpu("H100", 80 * 2**30, "580.82.07")] * 8
        self.torch = gpu.Torch("2.13.0+cu130", "13.0")
        self.probed: Any = {"count": 8, "errors": [], "nccl": "2.27.7"}
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(gpus, "installed", lambda: self.gpus)
        monkeypatch.setattr(gpu, "installed_torch", lambda: self.torch)
        monkeypatch.setattr(gpu, "probe", self.probe)

    def probe(self) -> dict[str, Any]:
        if isinstance(self.probed, Exception):
            raise self.probed
        return self.probed

    def findings(self, run: RunConfig | None) -> dict[str, Finding]:
        plan = make_plan(run) if run is not None else None
        return {finding.name: finding for finding in gpu.check_gpus(run, plan)}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return Pretended(monkeypatch)


def test_eight_gpus_on_which_all_is_well(here: Pretended) -> None:
    found = here.findings(config("z_image_turbo_lora"))
    assert [f.level for f in found.values()] == ["ok"] * 4, found
    assert set(found) == {"driver", "gpus", "cuda", "nccl"}
    assert "13.0" in found["driver"].found and "8: H100 80 GiB" in found["gpus"].found


@pytest.mark.parametrize(
    ("driver", "cuda", "level"),
    [
        ("570.86.10", "13.0", "stop"),
        ("580.65.06", "13.0", "ok"),
        ("525.60.13", "12.8", "ok"),
        ("470.57.02", "12.8", "stop"),
        ("610.1", "15.1", "ok"),
        ("[N/A]", "12.8", "stop"),
    ],
)
def test_the_driver_against_torchs_cuda(
    here: Pretended, driver: str, cuda: str, level: str
) -> None:
    here.gpus = [gpus.Gpu("A", 2**36, driver)]
    here.torch = gpu.Torch("2.13.0", cuda)
    finding = here.findings(None)["driver"]
    assert finding.level == level, finding
    assert (level == "ok") != bool(finding.remedy)


def test_a_torch_without_cuda_stops_what_would_take_the_gpus(here: Pretended) -> None:
    here.torch = gpu.Torch("2.13.0+cpu", None)
    assert here.findings(config("z_image_turbo_lora"))["driver"].level == "stop"
    assert here.findings(config("shapes", "device=auto"))["driver"].level == "stop"
    assert here.findings(config("shapes", "device=cpu"))["driver"].level == "ok"
    assert here.findings(None)["driver"].level == "do"


def test_no_gpu_stops_device_cuda_where_ray_starts_here(here: Pretended, monkeypatch) -> None:
    here.gpus = []
    assert here.findings(config("z_image_turbo_lora"))["gpus"].level == "stop"
    assert here.findings(config("shapes"))["gpus"].level == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert here.findings(config("z_image_turbo_lora"))["gpus"].level == "ok"


def test_too_few_or_too_small_gpus(here: Pretended) -> None:
    here.gpus = here.gpus[:2]
    finding = here.findings(config("z_image_turbo_lora"))["gpus"]
    assert finding.level == "stop" and "asks for 8" in finding.found
    here.gpus = [gpus.Gpu("A10", 24 * 2**30, "580.82")] * 8
    run = config("z_image_turbo_lora")
    assert here.findings(run)["gpus"].level == "do"
    run.plan.mode = "strict"
    finding = here.findings(run)["gpus"]
    assert finding.level == "stop" and "A10 holds 23.3 GiB" in finding.found


def test_what_torch_cannot_do_is_said_in_its_words(here: Pretended) -> None:
    run = config("z_image_turbo_lora")
    here.probed = {"count": 8, "errors": ["cuda:0: no kernel image is available"]}
    assert "no kernel image" in here.findings(run)["cuda"].found
    here.probed = {"count": 0, "errors": []}
    assert here.findings(run)["cuda"].level == "stop"
    here.probed = subprocess.CalledProcessError(1, "x", stderr="Traceback\nOSError: libcuda.so")
    assert "OSError: libcuda.so" in here.findings(run)["cuda"].found
    here.probed = {"count": 8, "errors": [], "nccl_error": "unhandled system error"}
    assert here.findings(run)["nccl"].level == "stop"
    assert here.findings(config("shapes", "learner.workers=1"))["nccl"].level == "do"


def test_the_probe_itself_finds_no_gpu_here() -> None:
    assert gpu.probe() == {"count": 0, "errors": []}


def pretend_shared_memory(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    usage = SimpleNamespace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_dockers_shared_memory_is_too_small_for_nccl(monkeypatch) -> None:
    run = config("z_image_turbo_lora")
    plan = make_plan(run)
    pretend_shared_memory(monkeypatch, 64 * MIB, 64 * MIB)
    assert machine.check_shared_memory(run, plan).level == "stop"
    assert machine.check_shared_memory(None, None).level == "do"
    pretend_shared_memory(monkeypatch, 2**33, 1500 * MIB)
    finding = machine.check_shared_memory(run, plan)
    assert finding.level == "do" and "shm-size" in finding.remedy
    pretend_shared_memory(monkeypatch, 2**34, 2**34)
    assert machine.check_shared_memory(run, plan).level == "ok"


def test_cpus_and_what_a_local_ray_takes(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cpus, "usable", lambda: cpus.Cpus(64, 16, 3.5))
    finding = machine.check_cpus()
    assert finding.level == "ok" and finding.found == (
        "4 usable (64 of the machine, 16 by affinity, 3.5 by cgroup); a local Ray takes 4"
    )
    monkeypatch.setattr(cpus, "usable", lambda: cpus.Cpus(64, 1, None))
    assert machine.check_cpus().level == "do"


def test_disks_without_room(monkeypatch, tmp_path: Path) -> None:
    run = config("z_image_turbo_lora", f"run.folder={tmp_path}/run")
    plan = make_plan(run)
    all_well = levels(machine.check_disks(run, plan, 0.0))
    assert all_well["disk for models"] == "ok"
    usage = SimpleNamespace(total=2**40, free=2**30)  # a checkpoint of it takes more than 3 GB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = {finding.name: finding for finding in machine.check_disks(run, plan, 41.7)}
    assert [f.level for f in found.values()] == ["do", "stop", "stop"]
    assert "42 GB" in found["disk for models"].found
    usage.free = 6 * 2**30
    assert levels(machine.check_disks(run, plan, 0.0))["disk for the run"] == "do"


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = config("shapes", f"run.folder={tmp_path}/file/run")
    *_, finding = machine.check_disks(run, None, 0.0)
    assert finding.level == "stop" and finding.found.startswith("run.folder: ")


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    declared = ["torch<3,>=2.9", "ray[data]<2.61,>=2.60", 'psutil>=6; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(versions, "tested_set", lambda: {"torch": "2.13.0", "ray": "2.60.0"})


@pytest.mark.parametrize(
    ("installed", "level", "words"),
    [
        ({"torch": "2.13.0+cu130", "ray": "2.60.0"}, "ok", ""),
        ({"torch": "2.12.1", "ray": "2.60.0"}, "do", "torch 2.12.1 (tested: 2.13.0)"),
        ({"torch": "2.13.0", "ray": "2.61.0"}, "stop", "ray 2.61.0, allowed: <2.61,>=2.60"),
        ({"torch": "2.13.0"}, "stop", "ray is missing"),
    ],
)
def test_libraries_against_their_range_and_the_tested_set(
    monkeypatch, installed: dict[str, str], level: str, words: str
) -> None:
    pretend_versions(monkeypatch, **installed)
    finding = versions._libraries()
    assert finding.level == level and words in finding.found


def test_the_tested_set_is_that_of_the_constraints() -> None:
    tested = versions.tested_set()
    assert {"torch", "ray", "deepspeed", "ruamel-yaml"} <= tested.keys() and len(tested) > 100


def test_a_torchvision_of_another_build_stops_what_shows_images(monkeypatch) -> None:
    monkeypatch.setattr(versions, "torchvision_problem", lambda: "0.20 does not fit torch 2.13")
    assert versions._torchvision(config("z_image_turbo_lora")).level == "stop"
    text = config("z_image_turbo_enhanced_prompt_lora")
    assert versions._torchvision(text).level == "do"


def test_a_library_that_one_key_asks_for(monkeypatch) -> None:
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: None)
    (finding,) = versions._optional(config("shapes", "learner.optimizer=adamw8bit"))
    assert finding.name == "bitsandbytes" and finding.level == "stop"
    assert versions._optional(config("shapes")) == []


def test_a_look_that_fails_does_not_end_the_others(here: Pretended, monkeypatch) -> None:
    def broken() -> None:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(cpus, "usable", broken)
    found = examine(config("shapes"))
    (finding,) = (f for f in found if "no /proc here" in f.found)
    assert finding.level == "do"
    assert levels(found)["models"] == "ok" and "/dev/shm" in levels(found)


def test_lines_and_record() -> None:
    found = [Finding("a", "ok", "fine"), Finding("long name", "stop", "broken", "mend it")]
    assert lines(found) == ["ok    a          fine", "STOP  long name  broken; mend it"]
    assert stops(found) and not stops(found[:1])
    assert record(found)["ok"] is False and record(found)["findings"][1]["remedy"] == "mend it"
