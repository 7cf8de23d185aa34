"""What a concept is trained with: the library's config with what its name overrides, as the config
of a run of this concept alone; and the fingerprint of all that its adapter depends on."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.config.base import MOST
from dopsd.config.messages import one_line
from dopsd.data.manifest import Manifest
from dopsd.data.run_data import concept_weights
from dopsd.errors import ConfigError
from dopsd.learner.zero.engine import preset_stage, read_preset
from dopsd.models.fingerprint import model_identity
from dopsd.models.lora.merge import merged_record
from dopsd.models.lora.warm_start import initial_record
from dopsd.models.pretrained import resolve_base

METHOD = 1
"""Counts what changes an adapter of the same data and recipe: a library of an older count trains
anew."""
_DECIDES: dict[str, Any] = {
    "run": {"seed", "determinism"},
    "model": {"family", "dtype", "vlm", "vlm_revision", "quantize"},
    "encoder": {"quantize"},
    "context": True,
    "data": {"caption_keys", "caption_dropout"},
    "method": True,
    "adapters": True,
    "lora": {"rank", "alpha", "targets", "modules_to_train", "dora", "rank_stabilized"},
    "source": True,
    "learner": {
        *("steps", "global_batch", "micro_batch", "optimizer", "lr", "weight_decay", "betas"),
        *("eps", "max_grad_norm", "warmup_steps", "schedule", "deepspeed", "attention"),
        *("gradient_checkpointing", "max_nonfinite"),
    },
    "library": {"stop"},
}
"""Keys of a config on which an adapter depends."""


_ALLOWED = {
    "data.context_cache": "auto",
    "data.prior.prompts": "none",
    "preview.prompts": "none",
}
"""In words, where the value does not say it."""


def check_library(config: RunConfig) -> None:
    """Raises ConfigError for a config that no library can have."""
    for key, given, wanted, why in (
        ("max_policy_lag", config.max_policy_lag, 0, "each concept is strictly on-policy"),
        ("adapters", config.adapters, "lora", "a library keeps a LoRA of each concept"),
        ("learner.workers", config.learner.workers, 1, "library.workers says how many train"),
        ("learner.min_workers", config.learner.min_workers, None, "workers come and go singly"),
        ("data.prior.prompts", config.data.prior.prompts, None, "no concept is like another"),
        ("data.balance", config.data.balance, "samples", "each concept trains by itself"),
        ("preview.prompts", config.preview.prompts, [], "no text encoder is there to read them"),
        ("debug.dump_trajectories", config.debug.dump_trajectories, 0, "it is of a single run"),
        (
            "learner.compile",
            config.learner.compile,
            False,
            "no promise of the same bits would hold",
        ),
        ("model.compile", config.model.compile, False, "no promise of the same bits would hold"),
        ("data.context_cache", config.data.context_cache == "off", False, "no encoder beside"),
    ):
        if given != wanted:
            words = "off" if key == "data.context_cache" else given
            allowed: object = _ALLOWED.get(key, wanted)
            raise ConfigError(
                f"{key}: {shown.value(words, quoted=False)} in a library, allowed: {allowed} "
                f"({why})"
            )
    if config.learner.optimizer == "adamw8bit":
        raise ConfigError(
            "learner.optimizer: adamw8bit in a library, allowed: adamw or prodigy (a LoRA's "
            "moments are small)"
        )
    if config.source == "disaggregated":
        _check_disaggregated(config)
    elif config.library.in_flight != "auto":
        raise ConfigError(
            f"library.in_flight: {config.library.in_flight} in a library with source: fused, "
            "allowed: auto (a worker trains one concept at a time; source: disaggregated several)"
        )
    if config.data.shards is None:
        raise ConfigError(
            "data.shards: missing in a library, allowed: a folder of its own, beside run.folder "
            "(the shards outlive a library and serve others)"
        )
    if preset_stage(read_preset(config.learner.deepspeed)) == 3:
        raise ConfigError(
            f"learner.deepspeed: {config.learner.deepspeed} in a library, allowed: ZeRO stage 1 or "
            "2 (a worker is alone, there is nobody to share weights with)"
        )


def _check_disaggregated(config: RunConfig) -> None:
    """Raises ConfigError for what concepts that share pools cannot have."""
    objective = config.method.objective
    if objective != "dopsd":
        raise ConfigError(
            f"method.objective: {objective} in a library with source: disaggregated, allowed: "
            "dopsd (nobody rolls out in another one: source: fused trains it)"
        )
    if config.transport != "object_store":
        raise ConfigError(
            f"transport: {config.transport} in a library with source: disaggregated, allowed: "
            "object_store (workers that are replaced and learners that come have no group)"
        )


class Recipes:
    """The configs of the concepts of a library; raises ConfigError for overrides that give none."""

    def __init__(self, config: RunConfig) -> None:
        check_library(config)
        self.config = config
        self._overrides = config.library.overrides
        self._values = config.model_dump(mode="json")
        self._values["learner"]["steps"] = MOST  # a concept's are its own
        self._made: dict[tuple[str, ...], RunConfig] = {}
        for patterns in ((), *((pattern,) for pattern in self._overrides)):
            self._config(patterns)

    def refuse_unmatched(self, names: Collection[str]) -> None:
        """Raises ConfigError for a pattern that none of ``names`` matches."""
        for pattern in self._overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"library.overrides: {shown.value(pattern)} matches none of {len(names)} "
                    f"concepts, such as {shown.value(min(names))}; allowed: names with * and ?"
                )

    def steps(self, name: str, pictures: int) -> int:
        """Optimizer steps of a concept of so many pictures."""
        return self.shared(name).library.steps.of(pictures)

    def config_of(self, name: str, steps: int) -> RunConfig:
        """The config with which `dopsd train` gives the concept's adapter alone."""
        config = self.shared(name).model_copy(deep=True)
        config.learner.steps = steps
        config.data.concepts = [name]
        return config

    def shared(self, name: str) -> RunConfig:
        """The config of all concepts that the same patterns match."""
        return self._config(tuple(p for p in self._overrides if fnmatchcase(name, p)))

    def _config(self, patterns: tuple[str, ...]) -> RunConfig:
        if patterns not in self._made:
            values = copy.deepcopy(self._values)
            for pattern in patterns:
                for key, value in self._overrides[pattern].items():
                    *sections, leaf = key.split(".")
                    node = values
                    for section in sections:
                        node = node[section]
                    node[leaf] = value
            try:
                self._made[patterns] = RunConfig.model_validate(values)
            except ValidationError as error:
                raise ConfigError(
                    f"library.overrides, {shown.value(patterns[-1])}: {one_line(error, RunConfig)}"
                ) from None
            _check_warmup(self._made[patterns])
        return self._made[patterns]


def _check_warmup(config: RunConfig) -> None:
    if (warmup := config.learner.warmup_steps) > (least := config.library.steps.min):
        raise ConfigError(
            f"learner.warmup_steps: {warmup}, allowed: at most library.steps.min ({least})"
        )


@dataclass(frozen=True)
class Fingerprints:
    """Of the concepts of a data set under a recipe."""

    recipes: Recipes
    manifest: Manifest

    def of(self, name: str, steps: int) -> str:
        """32 hex digits of all that the concept's adapter depends on. Of shards that were prepared
        by an older dopsd it depends on every other concept, too."""
        data = self.manifest.concept_fingerprints.get(name, self.manifest.fingerprint)
        weight = concept_weights(self.recipes.config, self.manifest).get(name, 1.0)
        values = [self._common, self._recipe(name), steps, data, weight]
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @cached_property
    def _common(self) -> list[Any]:
        model, settings = self.recipes.config.model, self.manifest.settings
        folder = Path(resolve_base(model.base)) / "transformer"
        identity = model_identity(str(folder) if folder.is_dir() else model.base, model.revision)
        config = self.recipes.config
        records = merged_record(model.merge, model.merge_sha256) | initial_record(config)
        # By content: wherever the files lie, and whatever they are called.
        loras = {key: _without_names(json.loads(text)) for key, text in records.items()}
        values = [METHOD, identity, loras, settings.seed, settings.rows_per_group]
        return [*values, self._unusual] if self._unusual else values

    @property
    def _unusual(self) -> dict[str, Any]:
        """What came to decide after there were libraries, only where it is not as it was then: a
        library of before keeps its fingerprints."""
        config = self.recipes.config
        values: dict[str, Any] = {}
        if self.manifest.masks and not config.data.masks:
            values["data.masks"] = False
        if config.lora.kind != "lora":
            values["lora"] = config.lora.model_dump(include={"kind", "factor", "decompose_both"})
        if config.data.preservation.words:
            values["data.preservation"] = config.data.preservation.model_dump()
            values["data.token"] = config.data.token
        if config.source == "disaggregated" and config.model.attention is not None:
            values["model.attention"] = config.model.attention
        if config.learner.optimizer == "prodigy":
            values["learner.prodigy"] = [config.learner.d0, config.learner.d_coef]
        return values

    def _recipe(self, name: str) -> str:
        return _decisive(self.recipes.shared(name).model_dump_json(include=_DECIDES))


def _without_names(record: Any) -> Any:
    if isinstance(record, list):
        return list(map(_without_names, record))
    return {key: value for key, value in record.items() if key != "file"}


@lru_cache(maxsize=64)
def _decisive(text: str) -> str:
    values = json.loads(text)
    del values["learner"]["steps"]
    return json.dumps(values, sort_keys=True)
