"""What a process sets before it computes, and what it costs."""

from __future__ import annotations

import os
import resource
import sys

import torch


def use_device(device: str) -> None:
    """Decide once what this process computes on, before any library decides for itself.

    DeepSpeed would take a GPU that it sees, and Ray leaves every GPU visible to a worker that asked
    for none; so a process on the CPU sees none from here on. Raises RuntimeError when DeepSpeed has
    chosen another device already.
    """
    kind = torch.device(device).type
    os.environ["DS_ACCELERATOR"] = kind
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if deepspeed := sys.modules.get("deepspeed.accelerator"):
        chosen = deepspeed.get_accelerator().device_name()
        if chosen != kind:
            raise RuntimeError(f"this process computes on {kind}, but DeepSpeed chose {chosen}")


def set_up(device: str) -> None:
    """``use_device``, and one thread on the CPU; on a GPU, ask torch and cuBLAS for deterministic
    kernels.

    Call it before the first CUDA call. Kernels that have no deterministic form only warn.
    """
    use_device(device)
    if device.startswith("cpu"):
        torch.set_num_threads(1)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def peak_memory_mb() -> float:
    """Peak memory of this process in MB: allocated on the GPU when it uses one, else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
