"""How learners on one machine find each other: over a store that listens on loopback alone.

torch's own store, as Ray Train starts it, listens on every interface and asks nobody for a token.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

from dopsd.ray_cluster.ray_private import _set_torch_distributed_env_vars, _TorchBackend

LOOPBACK = "127.0.0.1"
_serving: dict[int, TCPStore] = {}
"""Of rank 0: the store that it serves, by port, for as long as the process lives."""


class LoopbackTorchConfig(TorchConfig):
    """As Ray Train's, for learners that are all on this machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return LoopbackBackend


class LoopbackBackend(_TorchBackend):
    """Starts the process group of a group of learners."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        port = worker_group.execute_single(0, serve, len(worker_group))
        worker_group.execute(_join, port, backend_config.backend, backend_config.timeout_s)


def serve(world: int) -> int:
    """Open the store for ``world`` learners; returns its port."""
    listener = socket.create_server((LOOPBACK, 0))
    port: int = listener.getsockname()[1]
    _serving[port] = TCPStore(
        LOOPBACK,
        port,
        world_size=world,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return port


def _join(port: int, backend: str, timeout_s: int) -> None:
    _set_torch_distributed_env_vars()
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    # As Ray Train has it: a collective of NCCL that times out ends the process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    context = train.get_context()
    world, limit = context.get_world_size(), timedelta(seconds=timeout_s)
    store = _serving.get(port) or TCPStore(LOOPBACK, port, world, timeout=limit)
    torch.distributed.init_process_group(
        backend, store=store, rank=context.get_world_rank(), world_size=world, timeout=limit
    )
