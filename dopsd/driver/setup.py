"""The opening of every command that takes a run's config: what one of them refuses, all refuse, in
the same words and before a cluster starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from dopsd import storage
from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.config import RunConfig
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.manifest import Manifest
from dopsd.data.run_data import Tell, claimed_shards, plan_of, prepare_shards, prepared
from dopsd.driver.checks import (
    check_context,
    check_options,
    refuse_missing_source,
    with_absolute_paths,
)
from dopsd.driver.prior import check_prior, with_prior
from dopsd.driver.progress import Report, Show
from dopsd.learner.zero.engine import preset_stage, read_preset
from dopsd.lease import Lease, claimed
from dopsd.models import FAMILIES
from dopsd.models.trained import TrainableParameters
from dopsd.ray_cluster.connect import connect
from dopsd.ray_cluster.placement import Role, Roles, resolve_roles, wait_for_resources
from dopsd.run_folder.trackers import check_trackers

MakeData = Callable[[RunConfig, Tell], Manifest]


@dataclass(frozen=True)
class CheckedRun:
    """What can be known of a run without a cluster."""

    config: RunConfig
    """With absolute paths."""
    preset: dict[str, Any]
    """DeepSpeed's config."""
    trainable: dict[str, int]
    """Modules that the LoRA adapts, by target, and tensors that are trained whole."""


@dataclass(frozen=True)
class RunSetup(CheckedRun):
    """What a command works with, built once."""

    roles: Roles
    manifest: Manifest
    show: Show
    context_cache: ContextCache | None = None
    """In place of the encoder, of which ``roles`` then has none."""

    @classmethod
    def open(cls, run: CheckedRun, show: Show, data: MakeData = prepared) -> RunSetup:
        """Join or start Ray, and make or find the ``data``. Raises a DopsdError with one clear
        line."""
        show("prepare", "starting Ray")
        roles = resolve_roles(run.config, connect().get("GPU", 0.0))
        manifest = data(run.config, partial(show, "prepare"))
        return cls(run.config, run.preset, run.trainable, roles, manifest, show)

    def wait_for(self, *roles: Role) -> None:
        """Until the cluster is large enough for ``roles``, by default all of the run's. Raises
        ResourceError."""
        limit = self.config.timeouts.startup
        wait_for_resources(roles or self.roles.all(), ray.cluster_resources, limit)

    def with_prior(self, before_drawing: Callable[[], Any] = lambda: None) -> RunSetup:
        """With the samples of the base that train beside the data; raises as
        :func:`dopsd.driver.prior.with_prior` does."""
        manifest = with_prior(
            self.config, self.manifest, self.roles.learner, self.show, before_drawing
        )
        return replace(self, manifest=manifest)

    @property
    def identity(self) -> RunIdentity:
        """What a checkpoint must agree with."""
        plan = plan_of(self.config, self.manifest)
        return RunIdentity(self.manifest.fingerprint, plan.key)


def check_run(config: RunConfig, show: Show) -> CheckedRun:
    """All that can be judged without a cluster. Raises ConfigError, DataError or ModelError in one
    line."""
    show("prepare", "checking the config")
    preset = read_preset(config.learner.deepspeed)
    check_trackers(config.trackers)
    check_context(config, preset_stage(preset))
    check_options(config, preset)
    check_prior(config)
    config = with_absolute_paths(config)
    storage.check_writable("run.folder", config.run.folder)
    storage.check_writable("data.shards", config.shards)
    refuse_missing_source(config)
    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    trainable = TrainableParameters(config, family).describe(family.skeleton())
    return CheckedRun(config, preset, trainable)


def claimed_run(
    config: RunConfig, show: Show, take_over: bool = False
) -> AbstractContextManager[Lease]:
    """The run folder, for this process alone; raises as ``lease.claimed``."""

    def tell(line: str) -> None:
        show("prepare", Report([line]))

    return claimed(config.run.folder, "run.folder", take_over=take_over, tell=tell)


def prepare_data(config: RunConfig, show: Show, take_over: bool = False) -> Manifest:
    """`dopsd prepare`: shards and manifest. The cluster need not hold the roles: shards may be
    written where no GPU is."""
    config = check_run(config, show).config
    tell = partial(show, "prepare")
    with claimed_shards(config, tell, take_over):
        tell("starting Ray")
        connect()
        return prepare_shards(config, tell)
