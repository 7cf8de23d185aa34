"""What needs more than a config to be judged: options and run folders, refused before any cluster
starts; and what an error says of resuming."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopsd.checkpoint.compatibility import RunIdentity
from dopsd.checkpoint.folder import complete_steps
from dopsd.checkpoint.manager import newest_checkpoint
from dopsd.config import RunConfig
from dopsd.data.manifest import has_manifest
from dopsd.data.pictures.absent import check_drawn_size
from dopsd.data.run_data import no_source
from dopsd.data.shapes_source import SHAPES, check_shapes_source
from dopsd.data.sources.read import KINDS
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DopsdError,
    LeaseLost,
    StorageError,
)
from dopsd.evaluation.metrics import make_distance
from dopsd.files import storage
from dopsd.learner.zero.engine import offloads_optimizer, preset_stage
from dopsd.models import FAMILIES, resolve_vlm
from dopsd.models.attention import check_attention, takes_masks
from dopsd.models.lora.files import absolute_lora
from dopsd.models.lora.merge import absolute_merge
from dopsd.models.quantize import check_quantize
from dopsd.readers import Object, read_json
from dopsd.run_folder.files import SUMMARY_FILE, RunFolder


def check_options(config: RunConfig, preset: dict[str, Any]) -> None:
    """Raises ConfigError or ModelError in one line for what this run cannot have.

    ``preset``: DeepSpeed's, as ``read_preset`` gives it.
    """
    check_attention(config.model.attention)
    check_attention(config.learner.attention, "learner.attention", trains=True)
    _check_rows(config, preset)
    _check_quantize(config, preset)
    preflight = config.preflight
    named = preflight.metric if preflight.metric != "auto" else preflight.model and "dino"
    if preflight.mode == "strict" and named in ("dino", "clip"):
        make_distance(named, preflight.model).check()  # else it only warns, and trains
    if config.lora.dora and preset_stage(preset) == 3:
        raise ConfigError(
            "lora.dora: true with ZeRO stage 3, allowed: stage 1 or 2 (DoRA needs the norms of "
            "whole base weights in every forward, and stage 3 has cut them up)"
        )
    if config.lora.kind != "lora" and preset_stage(preset) == 3:
        raise ConfigError(
            f"lora.kind: {config.lora.kind} with ZeRO stage 3, allowed: stage 1 or 2 (stage 3 "
            "gathers what a layer's own modules hold, and PEFT keeps these factors in none)"
        )
    if config.learner.compile and preset_stage(preset) == 3:
        raise ConfigError(
            "learner.compile: true with ZeRO stage 3, allowed: stage 1 or 2 (stage 3 gathers the "
            "weights of each layer in the middle of a block)"
        )
    eight_bit = config.learner.optimizer == "adamw8bit"
    if eight_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "learner.optimizer: adamw8bit, but bitsandbytes is not installed: "
            "pip install bitsandbytes, here and on every learner's node"
        )
    if config.learner.optimizer != "adamw" and offloads_optimizer(preset):
        raise ConfigError(
            f"learner.optimizer: {config.learner.optimizer} with offload_optimizer in "
            "learner.deepspeed, allowed: one of both"
        )


def _check_quantize(config: RunConfig, preset: dict[str, Any]) -> None:
    """That it can be had, and that nobody cuts quantised weights up."""
    on_cpu = config.device == "cpu"
    check_quantize(config.model.quantize, "model.quantize", on_cpu)
    if config.data.context_cache != "require":
        check_quantize(config.encoder.quantize, "encoder.quantize", on_cpu)
    if config.model.quantize != "none" and preset_stage(preset) == 3:
        raise ConfigError(
            f"model.quantize: {config.model.quantize} with ZeRO stage 3, allowed: stage 1 or 2 "
            "(quantised weights are whole on every learner)"
        )


def _check_rows(config: RunConfig, preset: dict[str, Any]) -> None:
    """Rows of unequal length take a forward each where attention takes no mask, and stage 3 needs
    equally many forwards on every learner."""
    learner = config.learner
    if preset_stage(preset) < 3 or learner.micro_batch == 1:
        return
    text = FAMILIES[config.model.family].text_format
    if text.equal_lengths:
        raise ConfigError(
            f"learner.micro_batch: {learner.micro_batch} with model.family: {config.model.family} "
            "and ZeRO stage 3, allowed: 1 (texts of other lengths take a forward each, and stage 3 "
            "needs equally many on every learner)"
        )
    if not text.padded and not takes_masks(learner.attention):
        raise ConfigError(
            f"learner.attention: {learner.attention} with learner.micro_batch: "
            f"{learner.micro_batch} and ZeRO stage 3, allowed: learner.micro_batch: 1, or a "
            "backend that takes a mask, such as native"
        )


def check_context(config: RunConfig, zero_stage: int = 1) -> None:
    """Before any cluster: raises ModelError when the base is no pipeline of its family or the
    context's VLM is not available, ConfigError when the context's micro-batches cannot be trained
    under ``zero_stage``."""
    if config.context.needs.references and zero_stage == 3 and config.learner.micro_batch > 1:
        raise ConfigError(
            f"learner.micro_batch: {config.learner.micro_batch} with context.name: "
            f"{config.context.name} and ZeRO stage 3, allowed: 1 (references of other sizes take "
            "a forward each, and stage 3 needs equally many on every learner)"
        )
    check_drawn_size(config)
    FAMILIES[config.model.family](config.model.base, config.model.revision)
    if config.separate_vlm:
        resolve_vlm(config.model.base, config.model.vlm, config.model.revision)


def refuse_existing(config: RunConfig, replace: bool = False) -> None:
    """A run never mixes with another, unless it is asked to replace it; an unfinished one that
    could be resumed is replaced only when that is asked for on the spot (``replace``)."""
    run = RunFolder(config.run.folder)
    if replace or not run.exists:
        return
    saved = complete_steps(run.checkpoints)
    way = f"`dopsd train --resume {shlex.quote(run.path)}` to resume it"
    if not config.run.overwrite:
        raise ConfigError(
            f"run.folder: {run.path} holds a run already; allowed: another folder, or "
            "run.overwrite=true to replace it" + (f", or {way}" if saved else "")
        )
    if saved and not run.is_finished:
        raise ConfigError(
            f"run.folder: {run.path} holds an unfinished run, saved at step {saved[-1]}; allowed: "
            f"{way}, or --overwrite to lose it"
        )


def finished_already(config: RunConfig) -> str | None:
    """What to say of a run that has nothing left to train, in place of resuming it; else None."""
    run = RunFolder(config.run.folder)
    if not run.is_finished:
        return None
    trained = read_json(run.file(SUMMARY_FILE), Object).get("steps")
    if not isinstance(trained, int) or trained < config.learner.steps:
        return None
    folder = shlex.quote(run.path)
    return (
        f"{run.path}: this run is finished, all {trained} steps are trained; nothing was changed. "
        f"Its results: {folder}, its page: dopsd report {folder}; to train on, resume it with a "
        "larger learner.steps (learner.schedule: constant)"
    )


def tell_left(show: Show, left: Sequence[str]) -> None:
    """Say in a line what of a replaced run's folder is not the run's, and stays."""
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    tell_line(show, f"Kept in the run folder, since no run wrote it: {', '.join(left[:3])}{more}")


def tell_line(show: Show, line: str) -> None:
    """Say what people should keep, before training."""
    show("prepare", Report([line]))


def refuse_unless_resumable(config: RunConfig, identity: RunIdentity | None = None) -> str:
    """What the run resumes from, in words. Raises CheckpointError when nothing fits.

    ``identity``: what a checkpoint's data must agree with; None while that is not known yet.
    """
    checkpoint, refused = newest_checkpoint(config, identity)
    if checkpoint is None:
        root = RunFolder(config.run.folder).checkpoints
        raise CheckpointError("; ".join(refused) or f"{root}: no checkpoint; nothing to resume")
    words = f"resuming from step {checkpoint.step}"
    return f"{words}; refused: {'; '.join(refused)}" if refused else words


def with_resume_command(error: DopsdError, config: RunConfig) -> DopsdError:
    """The same error, with the command that resumes the run where a checkpoint is saved."""
    if isinstance(error, LeaseLost):
        return error
    folder, steps = config.run.folder, []
    with contextlib.suppress(OSError, StorageError):  # which may be why the run ended
        steps = complete_steps(RunFolder(folder).checkpoints)
    if not steps:
        return error
    command = f"dopsd train --resume {shlex.quote(folder)}"
    return type(error)(f"{error}; step {steps[-1]} is saved, resume with: {command}")


def what_is_saved(config: RunConfig) -> str:
    """Of a run that was interrupted, and how to go on."""
    run = RunFolder(config.run.folder)
    folder = shlex.quote(run.path)
    if run.is_finished:
        return f"the run is finished, its results are in {folder}; page: dopsd report {folder}"
    steps, again = complete_steps(run.checkpoints), config.run.resume == "auto"
    if steps:
        way = "the same command goes on" if again else f"resume with: dopsd train --resume {folder}"
        return f"step {steps[-1]} is saved, {way}"
    way = "the same command" if again else "the same command with --overwrite"
    return f"no checkpoint is saved yet; {way} begins again"


def refuse_missing_source(config: RunConfig) -> None:
    """Raises ConfigError or DataError when there is nothing to prepare from, before any cluster."""
    if has_manifest(config.shards):
        return
    source = config.data.source
    if source is None:
        raise no_source(config)
    if source.startswith(SHAPES):
        check_shapes_source(source)
    elif not storage.is_remote(source) and not Path(source).exists():
        raise DataError(f"data.source: {source}: no such {KINDS}")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same config with local paths made absolute: workers stand in other folders, and there a
    relative model folder would pass for a hub id."""
    config = config.model_copy(deep=True)
    local = (
        (config.run, "folder"),
        (config.data, "shards"),
        (config.data, "source"),
        (config.data.prior, "prompts"),
    )
    for section, key in local:
        path = getattr(section, key)
        # An empty one would be where the command stands (driver/setup/folders.py refuses it).
        if path and not storage.is_remote(path) and not path.startswith(SHAPES):
            setattr(section, key, str(Path(path).absolute()))
    config.model.merge = [absolute_merge(entry) for entry in config.model.merge]
    if config.lora.init:
        config.lora.init = absolute_lora(config.lora.init)
    models = ((config.model, "base"), (config.model, "vlm"), (config.preflight, "model"))
    for model, key in models:
        path = getattr(model, key)
        if path is not None and Path(path).expanduser().is_dir():
            setattr(model, key, str(Path(path).expanduser().absolute()))
    return config
