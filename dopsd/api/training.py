"""Training and what comes before it, as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dopsd.api.call import Config, as_config, call, quiet
from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from dopsd.data.manifest import Manifest
    from dopsd.driver.summary import Summary
    from dopsd.library.training import LibrarySummary
    from dopsd.plan import Plan


def train(
    config: Config = "shapes",
    *,
    overrides: Sequence[str] = (),
    on_step: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    take_over: bool = False,
    progress: bool = True,
) -> Summary:
    """Train ``config`` to its end, as `dopsd train` does: shards are prepared when missing.

    ``config``: a recipe's name, a YAML file, a mapping of sections or a RunConfig, with
    ``overrides`` such as "learner.lr=2e-4" on top. ``on_step`` is called in this process with the
    metrics of each step (a line of metrics.jsonl: ``step``, ``loss``, ``lr``, ...), in order; what
    it raises ends the run, and is raised here. ``resume``: from the newest checkpoint of
    ``run.folder``; ``overwrite``: replace the run that is there; ``take_over``: even from a process
    that writes there; ``progress``: show what is done.

    Returns what the run left behind: ``lora``, ``sheet``, ``page``, losses, seconds. Raises a
    DopsdError, of a signal InterruptedRun; a Ray that was started here then has ended, and
    otherwise serves the next call.
    """
    run = as_config(config, overrides)
    with call(progress) as show:
        from dopsd.driver.each_step import EachStep
        from dopsd.driver.train import train as launch

        first = None if resume or run.run.resume != "never" else 0
        told = EachStep(show, on_step, run.run.folder, first) if on_step else None
        summary = launch(run, told or show, resume=resume, replace=overwrite, take_over=take_over)
        if told:
            told.finish()
        return summary


def prepare(
    config: Config = "shapes",
    *,
    overrides: Sequence[str] = (),
    cache_contexts: bool = False,
    take_over: bool = False,
    progress: bool = True,
) -> Manifest:
    """Turn data.source into prepared shards, as `dopsd prepare` does; ``cache_contexts``: and
    encode all contexts once, so that training loads no encoder.

    Returns their manifest: samples, buckets, and what was quarantined why. Raises a DopsdError.
    """
    run = as_config(config, overrides)
    with call(progress, "the same call goes on") as show:
        from dopsd.data.manifest import load_manifest
        from dopsd.driver.context_cache import encode_contexts
        from dopsd.driver.setup.run_setup import prepare_data

        if not cache_contexts:
            return prepare_data(run, show, take_over)
        encode_contexts(run, show, take_over)
        return load_manifest(run.shards)


def plan(
    config: Config = "shapes",
    *,
    overrides: Sequence[str] = (),
    card: str | None = None,
    gpus: int | None = None,
    efficiency: float | None = None,
) -> Plan:
    """What a run needs, as `dopsd plan` computes it from config files alone.

    ``card``: its name (default: an H100), ``gpus``: to divide (default: as the config asks),
    ``efficiency``: share of the card's peak that is reached. The plan's ``record()`` is plain
    values: bytes, FLOPs, seconds. Raises ConfigError for a card that is not listed, ModelError for
    a base whose config files are not to be had.
    """
    run = as_config(config, overrides)
    quiet()
    from dopsd.plan import make_plan
    from dopsd.plan.cards import DEFAULT, EFFICIENCY, card_named

    share = EFFICIENCY if efficiency is None else efficiency
    if gpus is not None and gpus < 1:
        raise ConfigError(f"gpus: {gpus}, allowed: at least 1")
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"efficiency: {share}, allowed: above 0, at most 1")
    return make_plan(run, card_named(card or DEFAULT), gpus, share)


def library(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    take_over: bool = False,
    progress: bool = True,
) -> LibrarySummary:
    """Train of a library what is not trained yet, an adapter of each concept, as `dopsd library
    train` does; called again it goes on.

    Returns how the library stands. Raises a DopsdError, WorkerError when too many concepts failed.
    """
    run = as_config(config, overrides)
    with call(progress, "the same call goes on") as show:
        from dopsd.library.run import train_library

        return train_library(run, show, take_over=take_over)
