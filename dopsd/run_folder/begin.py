"""The beginning of a run in its folder."""

from __future__ import annotations

from dopsd import storage
from dopsd.config import RunConfig, dump_config
from dopsd.lease import Lease
from dopsd.run_folder.files import CONFIG_FILE, FINAL, OUTPUTS, RunFolder
from dopsd.run_folder.jsonl import part_names


def begin_run(config: RunConfig, resume: bool, lease: Lease) -> None:
    """Write the resolved config. Of an older run its outputs are taken away (not its shards), or
    only what a resumed run has to write anew. Raises LeaseLost when the folder, of which ``lease``
    is, belongs to another process."""
    lease.check()
    run = RunFolder(config.run.folder)
    existing = storage.names(run.path)
    for name in FINAL if resume else OUTPUTS:
        for part in {name, *part_names(name, existing)}:
            run.remove(part)
    run.write(CONFIG_FILE, dump_config(config).encode())
