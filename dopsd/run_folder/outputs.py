"""What of a run folder is the run's own, and what an older run in it gives up.

The names that a run writes get into the folder's record (room ``ownership``) before any of
them is there. What the record does not list is the user's, and so is what was put in the place of
a finished file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dopsd.config import RunConfig
from dopsd.data.manifest import find_manifest, has_manifest
from dopsd.errors import ConfigError, DopsdError
from dopsd.files import storage
from dopsd.models.lora.layers import STUDENT
from dopsd.ownership.ownership import OwnedFolder, carries_our_mark, digest_of
from dopsd.run_folder.checkpoint_files import remove_all_steps, steps
from dopsd.run_folder.files import (
    CHECKPOINTS,
    CONFIG_FILE,
    DEATH_LOG_MARK,
    DEBUG,
    DIFFUSERS_FILE,
    FINAL,
    LEDGER_FILE,
    LOGS,
    LORA_FILE,
    METRICS_FILE,
    MODULES,
    NOTICES_FILE,
    OLD_TEACHER,
    PREFLIGHT,
    PREVIEW,
    REPORT_FILE,
    REQUEST_FILE,
    SHARDS,
    SKIPPED_FILE,
    SUMMARY_FILE,
    TEACHER_FOLDER,
    TENSORBOARD,
    TIMELINE_FILE,
    TRANSFORMERS,
    RunFolder,
)
from dopsd.run_folder.jsonl import part_names

KIND = "run"
LINES = (METRICS_FILE, TIMELINE_FILE, LEDGER_FILE, SKIPPED_FILE)
"""Files that grow, on S3 in parts."""
_BEGUN = (CONFIG_FILE, REQUEST_FILE, NOTICES_FILE, *LINES)
"""Files that there may be from the beginning."""
_FILES = (*_BEGUN, SUMMARY_FILE, REPORT_FILE)
_KEPT = (CONFIG_FILE, SHARDS, PREFLIGHT)
"""What an older run leaves to the next one: the look before training clears its own."""
_MARKED = re.compile(
    rf"({DEBUG}|{PREVIEW})/(weights/v\d{{6,}}\.\w+(\.modules)?|trajectories/[\w-]+)\.safetensors"
)
"""Best-effort files, written by many processes: ours by where they are, by name and by a mark
inside."""
_LOG = re.compile(rf"{LOGS}/[\w-]+\.log")
"""The same of the ends of logs."""


def owned(folder: str) -> OwnedFolder:
    """The run folder and its record."""
    return OwnedFolder(folder, KIND, "run.folder")


def planned(config: RunConfig) -> list[str]:
    """The top of all that a run of ``config`` writes into its folder, but its shards."""
    names = [*_FILES, f"{CHECKPOINTS}/", f"{LOGS}/"]
    if config.adapters == "full":
        names += [f"{name}/" for name in TRANSFORMERS.values()]
    else:
        names += [LORA_FILE, DIFFUSERS_FILE, f"{TEACHER_FOLDER}/"]
    if config.adapters == "lora+modules":
        names.append(MODULES[STUDENT])
    if config.debug.dump_trajectories:
        names.append(f"{DEBUG}/")
    if config.preview.draws:
        names.append(f"{PREVIEW}/")
    if config.preflight.mode != "off":
        names.append(f"{PREFLIGHT}/")
    if "tensorboard" in config.trackers:
        names.append(f"{TENSORBOARD}/")
    return names


def check_run_folder(config: RunConfig, resume: bool = False) -> None:
    """Raises ConfigError when a run of ``config`` would write over what is not its own. A run that
    is resumed goes on with its lines, and sets aside what has become of them."""
    own = owned(config.run.folder)
    _adopt_shards(own)
    kept = LINES if resume else ()
    own.check(*(name for name in (*planned(config), *own.entries()) if name not in kept))


def check_stranger(folder: str) -> None:
    """Raises ConfigError for a folder that is somebody else's, in which not even a claim may be
    made. A run without a record is looked at under the claim."""
    if not RunFolder(folder).exists and not has_manifest(storage.join(folder, SHARDS)):
        owned(folder).check()


def check_may_prepare(config: RunConfig) -> None:
    """Raises ConfigError when shards that are prepared in the run folder would meet others."""
    if not has_manifest(config.shards) and not RunFolder(config.run.folder).exists:
        owned(config.run.folder).check(f"{SHARDS}/")


def claim_shards(config: RunConfig) -> None:
    """The run's own shards are about to be prepared. Raises as :func:`check_may_prepare` does."""
    if config.data.shards is None and not has_manifest(config.shards):
        owned(config.run.folder).claim(f"{SHARDS}/")


def take_run_folder(config: RunConfig, resume: bool) -> list[str]:
    """Make room for a run: of an older one its outputs go (not its shards), or only what a resumed
    run has to write anew; and put into the record what this one will write.

    Whoever calls it holds the folder's lock. Returns what stays although it lies in a folder of
    ours. Raises ConfigError as :func:`check_run_folder` does.
    """
    own = owned(config.run.folder)
    if resume:
        _adopt_run(own)
    check_run_folder(config, resume)
    left = remove_outputs(own, FINAL if resume else None)
    # What is written at once, and then finished, is claimed when it is: until then, a file of that
    # name is none of ours.
    own.claim(*(name for name in planned(config) if name in _BEGUN or name.endswith("/")))
    own.seal({REQUEST_FILE: digest_of([])} | dict.fromkeys(LINES))  # which grow again
    return left


def remove_outputs(own: OwnedFolder, only: Iterable[str] | None = None) -> list[str]:
    """Remove an older run's outputs, or ``only`` those under these names; returns what stays."""
    entries = own.entries()
    wanted = {name.partition("/")[0] for name in entries} - set(_KEPT)
    if only is not None:
        wanted &= set(only)
    names = [name for name in entries if name.partition("/")[0] in wanted]
    names += _parts(own, wanted)
    left = []
    if f"{CHECKPOINTS}/" in names:
        left += [f"{CHECKPOINTS}/{name}" for name in remove_all_steps(own.file(CHECKPOINTS))]
    marked = _marked_files(own, wanted)
    own.adopt(*marked)
    left += own.remove([*names, *marked])
    # What lies beside ours in a folder of ours.
    for folder in names:
        if folder.endswith("/") and folder != f"{CHECKPOINTS}/":
            left += [folder + name for name, _ in storage.list_files(own.file(folder))]
    return sorted(set(left))


def _parts(own: OwnedFolder, wanted: set[str]) -> list[str]:
    """Later parts of files of ours that grow; put into the record, since only S3 has them."""
    if not storage.is_remote(own.path):
        return []
    existing = storage.names(own.path)
    parts = [part for name in LINES if name in wanted for part in part_names(name, existing)]
    own.adopt(*parts)
    return parts


def _marked_files(own: OwnedFolder, wanted: set[str]) -> list[str]:
    found = []
    for folder in {DEBUG, PREVIEW} & wanted:
        names = (f"{folder}/{name}" for name, _ in storage.list_files(own.file(folder)))
        found += [n for n in names if _MARKED.fullmatch(n) and carries_our_mark(own.file(n))]
    if LOGS in wanted:
        names = (f"{LOGS}/{name}" for name, _ in storage.list_files(own.file(LOGS)))
        found += [n for n in names if _LOG.fullmatch(n) and _is_death_log(own.file(n))]
    return found


def _is_death_log(path: str) -> bool:
    mark = DEATH_LOG_MARK.encode()
    return storage.read_bytes(path, 0, len(mark)) == mark


def seal_outputs(folder: str) -> None:
    """The run is done: from now on the record knows what its files of lines hold, and which there
    are."""
    own = owned(folder)
    names = storage.names(folder)
    own.forget(*(name for name in LINES if name not in names))
    own.seal_as_they_are(*LINES)


def _adopt_shards(own: OwnedFolder) -> None:
    """Shards that an older dopsd prepared in the run folder are all that it may hold unrecorded."""
    if own.record() is None and own.strangers() == [SHARDS] and find_manifest(own.file(SHARDS)):
        own.adopt(f"{SHARDS}/")


def _adopt_run(own: OwnedFolder) -> None:
    """The run of a dopsd that kept no record is shown to be ours by its config and checkpoints."""
    if own.record() is not None or not steps(own.file(CHECKPOINTS)):
        return
    run = RunFolder(own.path)
    try:
        run.config()
    except (DopsdError, OSError, ValueError):
        return
    names = storage.names(own.path)
    folders = (CHECKPOINTS, DEBUG, PREVIEW, PREFLIGHT, TENSORBOARD, SHARDS, *TRANSFORMERS.values())
    found = [name for name in _FILES if name in names]
    found += [f"{name}/" for name in folders if name in names]
    loras = (LORA_FILE, DIFFUSERS_FILE, MODULES[STUDENT], *OLD_TEACHER)
    found += [name for name in loras if name in names and carries_our_mark(own.file(name))]
    for folder in TRANSFORMERS.values():
        files = [f"{folder}/{name}" for name, _ in storage.list_files(own.file(folder))]
        found += [name for name in files if carries_our_mark(own.file(name))]
    own.adopt(*found)


def check_report(folder: str, mark: bytes) -> None:
    """Raises ConfigError when the run page's place is taken by what is no page of ours, which
    ``mark`` is part of."""
    own = owned(folder)
    if own.record() is not None:
        own.check(REPORT_FILE)
        return
    path = own.file(REPORT_FILE)
    if storage.exists(path) and mark not in storage.read_bytes(path):
        raise ConfigError(f"{path}: no page of dopsd's; allowed: moving it away")
