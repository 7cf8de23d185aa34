"""The C++ extensions that DeepSpeed compiles at first use: none that is not needed, and no build
that a dead process holds up.

torch marks a build under way by a file named ``lock``. A process that is killed in a build leaves
it behind, and whoever needs the extension later waits for that file without a deadline. So what is
needed is built here, under a lock that ends with its process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch.utils import cpp_extension

from dopsd.errors import DeadlineError
from dopsd.learner.zero.deepspeed_private import forbid_extension

_SHARED_MEMORY = "deepspeed_shm_comm"
_BUILD_SECONDS = 900.0
"""What another process may take for a build: CUDA kernels take minutes."""


def build_needed(config: dict[str, Any]) -> None:
    """Compile what a DeepSpeed config needs, or find it compiled, before DeepSpeed looks for it.

    Raises DeadlineError when another process has been building for longer than any build takes.
    """
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        # An all-reduce for inference, which DeepSpeed builds although training never calls it. On
        # a GPU it does not, and to say so would make it probe every kernel that it knows.
        forbid_extension(_SHARED_MEMORY)
    optimizer = config.get("optimizer", {}).get("params", {})
    if optimizer.get("torch_adam", True):
        return
    # Optimizer offload: AdamW on the host.
    build(get_accelerator().create_op_builder("CPUAdamBuilder"))


def build(builder: Any, limit: float = _BUILD_SECONDS) -> None:
    """``builder.load()`` of a DeepSpeed ``OpBuilder``, by one process of this machine at a time.

    ``limit``: seconds to wait for the others. Raises DeadlineError after them.
    """
    folder = Path(cpp_extension._get_build_directory(builder.name, False))
    try:
        # The kernel takes this lock back from a process that dies.
        with FileLock(folder / "dopsd.lock", timeout=limit):
            # Who left this one is dead: the living hold the other lock.
            (folder / "lock").unlink(missing_ok=True)
            builder.load()
    except Timeout:
        raise DeadlineError(
            f"{folder}: another process has been building this extension for {limit:g} s"
        ) from None
