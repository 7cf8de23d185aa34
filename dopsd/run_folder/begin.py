"""The beginning of a run in its folder."""

from __future__ import annotations

from collections.abc import Callable

from dopsd.config import RunConfig, dump_config
from dopsd.ownership.lease import Lease
from dopsd.run_folder.files import CONFIG_FILE, RunFolder
from dopsd.run_folder.outputs import take_run_folder


def begin_run(
    config: RunConfig,
    resume: bool,
    lease: Lease,
    tell: Callable[[list[str]], None] = lambda left: None,
) -> None:
    """Write the resolved config. Of an older run its outputs are taken away (not its shards), or
    only what a resumed run has to write anew; ``tell`` hears what stays beside them.

    Raises LeaseLost when the folder, of which ``lease`` is, belongs to another process, and
    ConfigError when what is there is not all a run's (``run_folder/outputs.py``).
    """
    lease.check()
    if left := take_run_folder(config, resume):
        tell(left)
    RunFolder(config.run.folder).write(CONFIG_FILE, dump_config(config).encode())
