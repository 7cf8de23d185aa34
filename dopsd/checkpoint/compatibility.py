"""What may change between the two parts of a run that is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dopsd.checkpoint.folder import CheckpointManifest
from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.models.lora.merge import MergedLora

_FREE_SECTIONS = (
    *("run", "encoder", "rollout", "teacher", "inference", "timeouts", "library", "checkpoint"),
    *("preview", "preflight", "debug", "trackers", "device", "transport"),
)
_FREE_KEYS = (
    *("learner.workers", "learner.min_workers", "learner.resize_interval_s"),
    *("learner.cpus", "learner.gpus", "learner.labels", "learner.deepspeed", "learner.attention"),
    *("learner.compile", "learner.gradient_checkpointing"),
    *("learner.restarts", "learner.restart_backoff_s"),
    *("learner.max_nonfinite", "learner.bucket_mb", "model.attention", "model.compile"),
    # What they stand for is compared by the fingerprint of the data.
    *("data.source", "data.shards", "data.shapes_count", "data.shapes_concepts"),
    "data.max_bad_fraction",
    *("data.columns", "data.caption_files", "data.caption_lines", "data.caption_encoding"),
    *("data.follow_links", "data.folder_repeats", "data.min_side", "data.max_enlarge"),
    "data.drawn_size",
    "data.token",
    # A fused learner computes the same, at lag 0, which is compared.
    *("data.context_cache", "source"),
)
"""Keys that change neither which samples a step holds nor what is computed with them."""


@dataclass(frozen=True)
class RunIdentity:
    """What a run trains on: fingerprint of its data, key of its plan."""

    data: str = ""
    plan: str = ""


def incompatibility(
    config: RunConfig, manifest: CheckpointManifest, identity: RunIdentity | None
) -> str | None:
    """Why ``config`` on this data and plan may not resume from a checkpoint, or None.

    Without an ``identity`` the config alone is looked at, as long as the data is not whole.
    """
    if changed := config_drift(config, manifest.config, manifest.step):
        key, new, old = changed
        return f"{key}: {new}, the checkpoint has {old}"
    if identity is None:
        return None
    for what, old, new in (
        ("data", manifest.data, identity.data),
        ("plan", manifest.plan, identity.plan),
    ):
        if old != new:
            return (
                f"{what}: the shards give {new[:12] or 'none'}, the checkpoint has "
                f"{old[:12] or 'none'}"
            )
    return None


def config_drift(
    config: RunConfig, earlier: Mapping[str, Any], step: int
) -> tuple[str, Any, Any] | None:
    """The first key (with its value now and then) in which ``config`` computes something else than
    the values of an ``earlier`` one, of which ``step`` steps are trained; None when it does not."""
    seeds = config.run.seed, earlier.get("run", {}).get("seed")
    if seeds[0] != seeds[1]:
        return "run.seed", *seeds
    for key, new, old in differences(config, earlier):
        if not _free(key, config, step):
            return key, new, old
    return None


def differences(config: RunConfig, earlier: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every key, with its value now and then, in which ``config`` differs from the values of an
    ``earlier`` one. One that one of the two dopsds does not know stands at its default in it."""
    before, after = _flat(earlier), _flat(shown_values(config))
    _compare_by_content(before, after)
    for key in sorted(before.keys() | after.keys()):
        old = before.get(key, _DEFAULTS.get(key))
        new = after.get(key, _DEFAULTS.get(key))
        if old != new:
            yield key, new, old


def _compare_by_content(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Of files whose digests both configs hold these are compared, and paths are not."""
    for key in ("lora.init", "model.merge"):
        old, new = (side.pop(f"{key}_sha256", None) for side in (before, after))
        if not old or not new:
            continue
        files = _by_content(before[key], old), _by_content(after[key], new)
        before[key] = after[key] if files[0] == files[1] else _told(before[key], old)
        if files[0] != files[1]:
            after[key] = _told(after[key], new)


def _by_content(files: str | list[str], digests: str | list[str]) -> Any:
    if isinstance(files, str):
        return digests
    return [(MergedLora.parse(file).scale, sha) for file, sha in zip(files, digests)]


def _told(files: str | list[str], digests: str | list[str]) -> Any:
    if isinstance(files, str):
        return f"{files} (sha256 {digests[:12]})"
    return [_told(file, digest) for file, digest in zip(files, digests)]


def _free(key: str, config: RunConfig, step: int) -> bool:
    if key == "encoder.quantize":
        return False  # of a section that is free it alone changes what is computed
    if key == "learner.steps":
        # The cosine ends at the last step; a constant rate knows none.
        return config.learner.schedule == "constant" and config.learner.steps >= step
    if key == "data.token" and config.data.preservation.words:
        return False  # it says what the class word replaces
    if key == "preview.steps" and config.data.prior.prompts and not config.data.prior.steps:
        return False  # the base's own samples are drawn with as many
    return key.split(".")[0] in _FREE_SECTIONS or key in _FREE_KEYS


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


_DEFAULTS = _flat(shown_values(RunConfig.model_validate({"data": {"source": "unused"}})))
