"""GPUs: driver against torch's CUDA build, whether torch computes on them, memory, NCCL."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from dopsd import gpus
from dopsd.config import RunConfig
from dopsd.driver.doctor.finding import Finding, Level, ok
from dopsd.errors import DataError
from dopsd.plan import Plan
from dopsd.plan.cards import GIB, USABLE
from dopsd.ray_cluster.connect import starts_here
from dopsd.readers import Object
from dopsd.readers.json_reader import parse_json

OLDEST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""By major version of CUDA: with this driver of Linux or a newer one all its minor versions run
(CUDA Compatibility, minor version compatibility)."""
_PROBE_S = 180.0
"""Seconds for the first CUDA contexts of a machine with eight GPUs."""


@dataclass(frozen=True)
class Torch:
    """The build of torch that is installed here."""

    version: str
    cuda: str | None


def check_gpus(config: RunConfig | None, plan: Plan | None) -> list[Finding]:
    """One finding for driver, GPUs and NCCL each; fewer where there is no GPU to look at."""
    found, torch = gpus.installed(), installed_torch()
    if not found:
        return [_without_gpus(config, torch)]
    unused = config is not None and config.device == "cpu"
    if torch.cuda is None:
        words = f"{len(found)} GPUs, but torch {torch.version} is a build without CUDA"
        if unused:
            return [ok("driver", f"{words}; device: cpu needs none")]
        remedy = "install torch's CUDA build, or device=cpu"
        return [Finding("driver", "do" if config is None else "stop", words, remedy)]
    driver = _driver(found[0].driver, torch.cuda)
    if driver.level == "stop":
        return [driver, _memory(found, config, plan)]
    return [driver, *_computing(found, config, plan)]


def installed_torch() -> Torch:
    import torch

    return Torch(torch.__version__, torch.version.cuda)


def _without_gpus(config: RunConfig | None, torch: Torch) -> Finding:
    words = f"nvidia-smi finds none; torch {torch.version}"
    if config is None or config.device != "cuda":
        return ok("gpus", f"{words}; runs compute on the CPU")
    if starts_here():
        remedy = "a machine with GPUs, or RAY_ADDRESS of a cluster that has them"
        return Finding("gpus", "stop", f"device: cuda, but {words}", remedy)
    return ok("gpus", f"{words}; RAY_ADDRESS is set: look on the nodes that have them")


def _driver(version: str, cuda: str) -> Finding:
    words = f"{version}; torch is built for CUDA {cuda}"
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if oldest and _numbers(version) < oldest:
        needed = ".".join(map(str, oldest))
        return Finding(
            "driver",
            "stop",
            f"{words}, which needs a driver of {needed} or newer",
            "a newer driver, or torch's build for an older CUDA",
        )
    return ok("driver", words)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _computing(found: list[gpus.Gpu], config: RunConfig | None, plan: Plan | None) -> list[Finding]:
    memory = _memory(found, config, plan)
    try:
        probed = probe()
    except (subprocess.SubprocessError, OSError, DataError) as error:
        return [memory, Finding("cuda", "stop", f"torch cannot use the GPUs: {_last_line(error)}")]
    if probed["errors"]:
        remedy = "torch's build for these GPUs, or CUDA_VISIBLE_DEVICES without them"
        return [memory, Finding("cuda", "stop", "; ".join(probed["errors"]), remedy)]
    if not probed["count"]:
        remedy = "CUDA_VISIBLE_DEVICES hides them, or the container lacks the driver's libraries"
        return [memory, Finding("cuda", "stop", "torch sees no GPU", remedy)]
    computes = ok("cuda", f"torch computes in bfloat16 on {probed['count']} GPUs")
    if "nccl" in probed:
        return [memory, computes, ok("nccl", f"{probed['nccl']}, a sum of one rank is right")]
    learners = config.learner.workers if config is not None else 1
    return [
        memory,
        computes,
        Finding(
            "nccl",
            "stop" if learners > 1 else "do",
            probed.get("nccl_error", "not tried"),
            "NCCL_DEBUG=INFO says where it fails; several learners need it",
        ),
    ]


def probe() -> dict[str, Any]:
    """What ``cuda_probe`` prints. Raises SubprocessError, OSError or DataError when it fails."""
    command = [sys.executable, "-m", "dopsd.driver.doctor.cuda_probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=True)
    return parse_json(done.stdout.strip().rpartition("\n")[2], "cuda_probe", Object)


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return str(said).strip().rpartition("\n")[2]


def _memory(found: list[gpus.Gpu], config: RunConfig | None, plan: Plan | None) -> Finding:
    kinds = {gpu.name: gpu.memory for gpu in found}
    words = f"{len(found)}: " + ", ".join(f"{n} {m / GIB:.0f} GiB" for n, m in kinds.items())
    if config is None or plan is None or config.device == "cpu" or not starts_here():
        return ok("gpus", words)
    if plan.shipped.gpus > len(found):
        return Finding(
            "gpus",
            "stop",
            f"{words}; the config asks for {plan.shipped.gpus:g}",
            "fewer workers, shares of a GPU (learner.gpus=0.7), or `dopsd plan --gpus "
            f"{len(found)}`",
        )
    least = min(found, key=lambda gpu: gpu.memory)
    if misfits := plan.misfits(least.memory * USABLE, least.name):
        level: Level = "stop" if config.plan.mode == "strict" else "do"
        return Finding("gpus", level, f"{words}; {misfits[0]}", "see `dopsd plan`")
    return ok("gpus", words)
