"""What torch can do on each GPU that it sees: run as a process of its own, since a CUDA context
takes memory for as long as its process lives. Prints one line of JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def probe() -> dict[str, Any]:
    """``count``: GPUs that torch sees; ``errors``: of GPUs on which it cannot compute; ``nccl``:
    its version, or ``nccl_error``."""
    found: dict[str, Any] = {"count": torch.cuda.device_count(), "errors": []}
    for index in range(found["count"]):
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
            if float((ones @ ones).sum()) != 64**3:
                found["errors"].append(f"cuda:{index}: a product of matrices is wrong")
        except RuntimeError as error:
            found["errors"].append(f"cuda:{index}: {_first_line(error)}")
    if found["count"] and not found["errors"]:
        try:
            found["nccl"] = _sum_by_nccl()
        except (RuntimeError, ValueError) as error:
            found["nccl_error"] = _first_line(error)
    return found


def _sum_by_nccl() -> str:
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        torch.cuda.set_device(0)
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
        dist.all_reduce(torch.ones(1, device="cuda:0"))
        torch.cuda.synchronize()
        dist.destroy_process_group()
    return ".".join(map(str, torch.cuda.nccl.version()))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
