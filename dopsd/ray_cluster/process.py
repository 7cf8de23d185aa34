"""What a worker process sets before it computes, and what it costs."""

from __future__ import annotations

import os
import resource

import torch


def set_up(device: str) -> None:
    """One thread per CPU worker; on a GPU, ask torch and cuBLAS for deterministic kernels.

    Call it before the first CUDA call. Kernels that have no deterministic form only warn.
    """
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
