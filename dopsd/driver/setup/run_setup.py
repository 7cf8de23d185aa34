"""The opening of every command that takes a run's config: what one of them refuses, all refuse, in
the same words and before a cluster starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dopsd import shown
from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.room import RoomNeeded, refuse_without_room
from dopsd.config import RunConfig
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.known_concepts import refuse_unknown_concepts
from dopsd.data.manifest import Manifest, has_manifest
from dopsd.data.pictures.masks import check_masks
from dopsd.data.prepare.folder import check_shards_folder
from dopsd.data.run_data import Tell, claimed_shards, has_shards, plan_of, prepare_shards, prepared
from dopsd.driver.drawing.prior import check_prior, with_prior
from dopsd.driver.drawing.sample_prompts import with_sample_prompts
from dopsd.driver.monitoring.progress import Show
from dopsd.driver.setup.checks import (
    check_context,
    check_options,
    refuse_missing_source,
    tell_line,
    with_absolute_paths,
)
from dopsd.driver.setup.folders import check_folders
from dopsd.driver.setup.limits import check_captions, check_limits, tell_of_cut_prompts
from dopsd.driver.setup.plan import check_plan
from dopsd.files import storage
from dopsd.learner.zero.engine import preset_stage, read_preset
from dopsd.models import FAMILIES, Family
from dopsd.models.attention import set_attention
from dopsd.models.lora.digests import with_digests
from dopsd.models.lora.merge import check_merge
from dopsd.models.lora.warm_start import initial_lora
from dopsd.models.trained import TrainableParameters
from dopsd.ownership.lease import Lease, claimed
from dopsd.ray_cluster.connect import connect, gpus_to_come, local_cpus, nodes, starts_here
from dopsd.ray_cluster.local import is_private
from dopsd.ray_cluster.placement import (
    Role,
    Roles,
    refuse_too_large,
    refuse_unlabelled,
    resolve_roles,
)
from dopsd.ray_cluster.reservation import Reservation
from dopsd.run_folder.outputs import check_run_folder, claim_shards
from dopsd.run_folder.trackers import check_trackers

MakeData = Callable[[RunConfig, Tell], Manifest]
Needed = Callable[[RunConfig, Roles], Sequence[Role]]
"""Which of the roles a command starts with."""


def no_roles(config: RunConfig, roles: Roles) -> Sequence[Role]:
    """Of a command that has none."""
    return ()


@dataclass(frozen=True)
class CheckedRun:
    """What can be known of a run without a cluster."""

    config: RunConfig
    """With absolute paths."""
    preset: dict[str, Any]
    """DeepSpeed's config."""
    trainable: dict[str, int]
    """Modules that the LoRA adapts, by target, and tensors that are trained whole."""
    room: RoomNeeded
    """On the disk of the run folder."""


@dataclass(frozen=True)
class RunSetup(CheckedRun):
    """What a command works with, built once."""

    roles: Roles
    manifest: Manifest
    show: Show
    place: Reservation
    context_cache: ContextCache | None = None
    """In place of the encoder, of which ``roles`` then has none."""

    @classmethod
    def open(
        cls,
        run: CheckedRun,
        show: Show,
        place: Reservation,
        needed: Needed,
        data: MakeData = prepared,
        later: Needed = no_roles,
    ) -> RunSetup:
        """Join or start Ray, wait on a cluster of several machines until it has a place for what is
        ``needed``, and make or find the ``data``. ``later``: what is claimed as well, and takes
        places that the first have left. Raises a DopsdError with one clear line; for data that is
        there before it waits."""
        config = run.config
        tell = partial(show, "prepare")
        if starts_here():
            refuse_too_large(resolve_roles(config, math.inf).all(), local_cpus())
        judged = None
        if has_shards(config):
            judged = _checked(config, data(config, tell), show).fingerprint
        show("prepare", "starting Ray")
        connect()
        if is_private():
            roles = resolve_roles(config, gpus_to_come(asked=False))
            refuse_unlabelled(roles.all(), nodes())
        else:
            roles = placed_roles(config, place, needed, later)
        claim_shards(config)
        manifest = data(config, tell)
        if manifest.fingerprint != judged:
            _checked(config, manifest, show)
        return cls(config, run.preset, run.trainable, run.room, roles, manifest, show, place)

    def wait_for(self, *roles: Role) -> None:
        """Until the cluster is large enough for ``roles``; by default for all of the run's, which
        are its claim from then on. Raises ResourceError."""
        wanted = roles or self.roles.all()
        self.place.wait(lambda: wanted, self.config.timeouts.startup, keep=not roles)

    def with_prior(self, before_drawing: Callable[[], Any] = lambda: None) -> RunSetup:
        """With the samples of the base that train beside the data; raises as
        :func:`dopsd.driver.drawing.prior.with_prior` does."""
        manifest = with_prior(
            self.config, self.manifest, self.roles.learner, self.show, before_drawing
        )
        return replace(self, manifest=manifest)

    @property
    def identity(self) -> RunIdentity:
        """What a checkpoint must agree with."""
        plan = plan_of(self.config, self.manifest)
        return RunIdentity(self.manifest.fingerprint, plan.key)


def _checked(config: RunConfig, manifest: Manifest, show: Show) -> Manifest:
    """Raises DataError or ConfigError for captions or masks that the run cannot take."""
    check_masks(config, manifest)
    check_captions(config, manifest, _family(config), show)
    return manifest


def placed_roles(
    config: RunConfig, place: Reservation, needed: Needed, later: Needed = no_roles
) -> Roles:
    """The roles as the cluster has them once there is a place for those that are ``needed``: only
    then `device: auto` is decided."""
    sections = (config.encoder, config.rollout, config.teacher, config.learner)
    asked = config.device == "cuda" or any(section.gpus for section in sections)
    roles: Roles = resolve_roles(config, gpus_to_come(asked))

    def wanted() -> Sequence[Role]:
        nonlocal roles
        roles = resolve_roles(config, gpus_to_come(asked))
        return needed(config, roles)

    place.wait(wanted, config.timeouts.startup, later=lambda: later(config, roles))
    return roles


def reserved(config: RunConfig, show: Show) -> Reservation:
    """The run's places on a cluster, for the ``with`` block."""
    what, tell = f"the run {config.run.folder}", partial(tell_line, show)
    return Reservation(what, tell, config.timeouts.queue, "timeouts.queue")


def check_run(config: RunConfig, show: Show, *, anew: bool = False) -> CheckedRun:
    """All that can be judged without a cluster; ``anew``: of shards that are there nothing will be
    left. Raises ConfigError, DataError or ModelError in one line."""
    show("prepare", "checking the config")
    preset = read_preset(config.learner.deepspeed)
    check_trackers(config.trackers)
    check_context(config, preset_stage(preset))
    check_options(config, preset)
    family = _family(config)
    check_limits(config, family)
    config = with_sample_prompts(config, family)
    check_prior(config)
    tell_of_cut_prompts(config, family, show)
    config = with_digests(with_absolute_paths(config))
    storage.check_writable("run.folder", config.run.folder)
    if anew or storage.is_remote(config.shards) or not has_manifest(config.shards):
        storage.check_writable("data.shards", config.shards)  # else they may be on a read-only disk
    check_folders(config)
    refuse_missing_source(config)
    refuse_unknown_concepts(config, anew)
    trained, skeleton = TrainableParameters(config, family), family.skeleton()
    trainable = trained.describe(skeleton)
    _check_warm_start(trained, skeleton, show)
    check_merge(skeleton, family, config.model.merge)
    room = RoomNeeded.of(config, trained.numel(skeleton))
    check_plan(config, show, alone=starts_here())
    if starts_here():  # then what an attention backend needs is here, or nowhere
        set_attention(skeleton, config.model.attention)
        set_attention(skeleton, config.learner.attention, "learner.attention")
    return CheckedRun(config, preset, trainable, room)


def _check_warm_start(trained: TrainableParameters, skeleton: Any, show: Show) -> None:
    """Say how much of `lora.init` fits. Raises ModelError unless all does."""
    if initial_lora(trained, skeleton):
        count, lora = len(trained.adapted(skeleton)), trained.config.lora
        fit = f"{count} of {count} modules fit, rank {lora.rank}"
        tell_line(show, f"Begins from {shown.value(lora.init, quoted=False)}: {fit}")


def _family(config: RunConfig) -> Family:
    return FAMILIES[config.model.family](config.model.base, config.model.revision)


def check_place(run: CheckedRun, resume: bool) -> None:
    """Whether the run may write into its folder. Raises ConfigError for what is not ours, and for a
    disk without room."""
    if not resume:
        check_run_folder(run.config)
    refuse_without_room(run.config, run.room, resume)


def claimed_run(
    config: RunConfig, show: Show, take_over: bool = False
) -> AbstractContextManager[Lease]:
    """The run folder, for this process alone; raises as ``lease.claimed``."""
    tell = partial(tell_line, show)
    return claimed(config.run.folder, "run.folder", take_over=take_over, tell=tell)


def prepare_data(config: RunConfig, show: Show, take_over: bool = False) -> Manifest:
    """`dopsd prepare`: shards and manifest. The cluster need not hold the roles: shards may be
    written where no GPU is."""
    config = check_run(config, show, anew=True).config
    tell = partial(show, "prepare")
    check_shards_folder(config.shards)
    with claimed_shards(config, tell, take_over):
        tell("starting Ray")
        connect()
        claim_shards(config)
        manifest = prepare_shards(config, tell)
        check_captions(config, manifest, _family(config), show)
        return manifest
