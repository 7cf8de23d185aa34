"""What a process sets before it computes, and what it costs."""

from __future__ import annotations

import os
import resource
import sys
from typing import Literal

import torch

EXPANDABLE = "expandable_segments:True"
"""Of CUDA's allocator. Batches have many sizes: segments of fixed size would leave memory that
nobody can use."""


def use_device(device: str) -> None:
    """Decide once what this process computes on, before any library decides for itself.

    DeepSpeed would take a GPU that it sees, and Ray leaves every GPU visible to a worker that asked
    for none; so a process on the CPU sees none from here on. Raises RuntimeError when DeepSpeed has
    chosen another device already.
    """
    kind = torch.device(device).type
    os.environ["DS_ACCELERATOR"] = kind
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", EXPANDABLE)
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if deepspeed := sys.modules.get("deepspeed.accelerator"):
        chosen = deepspeed.get_accelerator().device_name()
        if chosen != kind:
            raise RuntimeError(f"this process computes on {kind}, but DeepSpeed chose {chosen}")


def set_up(device: str, determinism: Literal["off", "strict"] = "off") -> None:
    """``use_device``, one thread on the CPU, and deterministic kernels alone when ``strict``: an
    operator that has none then raises RuntimeError.

    Call it before the first matrix product: cuBLAS reads its variable then. There is no middle:
    while torch only warns, attention's backward on a GPU takes the kernel that varies.
    """
    use_device(device)
    if device.startswith("cpu"):
        torch.set_num_threads(1)
    strict = determinism == "strict"
    if strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if strict != torch.are_deterministic_algorithms_enabled():  # it imports torch's compiler
        torch.use_deterministic_algorithms(strict)
    # It would write nan into whatever is allocated: a kernel each, for a fault of other programs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def peak_memory_mb() -> float:
    """Peak memory of this process in MB: on the GPU, when it uses one, what was allocated since the
    last call; else what was resident since its start."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
