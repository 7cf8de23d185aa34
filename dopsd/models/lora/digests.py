"""The files that a run's weights begin with, known by content: a config takes their SHA-256 when
its run begins, and from then on another file under the same path is no longer the same config."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.models.lora.files import lora_digest, other_file
from dopsd.models.lora.merge import MergedLora

_INIT, _MERGE = "lora.init", "model.merge"


def with_digests(config: RunConfig) -> RunConfig:
    """The config with the digests of ``lora.init`` and ``model.merge``, of absolute paths.

    Reads each file once. Raises ModelError for one that cannot be read, or whose digest is given
    and another.
    """
    config = config.model_copy(deep=True)
    lora, model = config.lora, config.model
    inits = [lora.init] if lora.init else []
    given = [lora.init_sha256] if lora.init and lora.init_sha256 else []
    lora.init_sha256 = next(iter(_digests(_INIT, inits, given)), None)
    merged = [MergedLora.parse(entry).path for entry in model.merge]
    model.merge_sha256 = _digests(_MERGE, merged, model.merge_sha256)
    return config


def _digests(key: str, paths: Sequence[str], given: Sequence[str]) -> list[str]:
    if given and len(given) != len(paths):
        raise ModelError(
            f"{key}_sha256: {len(given)} for {len(paths)} files, allowed: one of each file, or none"
        )
    found = [lora_digest(path, key) for path in paths]
    for path, digest, wanted in zip(paths, found, given):
        if digest != wanted:
            raise other_file(f"{key}: {path}", digest, f"{key}_sha256", wanted)
    return found
