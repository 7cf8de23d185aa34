"""A run's data: shards that exist or are prepared now, its plan, and samples for previews."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dopsd import storage
from dopsd.config import RunConfig
from dopsd.config.data import PRIOR
from dopsd.data.captions import check_caption_keys, check_prompt_pairs
from dopsd.data.join import without_prior
from dopsd.data.manifest import Manifest, has_manifest, load_manifest
from dopsd.data.plan import Plan, RowRef
from dopsd.data.prepare.run import load_prepared, prepare
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.read import ReadSpec, RowGroups, read_micro_batch, samples_of
from dopsd.data.references import check_references
from dopsd.data.sample import Sample
from dopsd.errors import ConfigError, DataError
from dopsd.lease import Lease, claimed
from dopsd.scratch import temporary_folder

Tell = Callable[[str], None]
"""Called with what is being done now."""
SHAPES = "shapes:"


def source_name(config: RunConfig) -> str | None:
    """What the manifest calls the run's source: an absolute path, a URL, or the shapes set."""
    source = config.data.source
    if source is None or storage.is_remote(source):
        return source
    if source.startswith(SHAPES):
        return f"{source} count={config.data.shapes_count} seed={config.run.seed}"
    return str(Path(source).absolute())


def claimed_shards(
    config: RunConfig, tell: Tell, take_over: bool = False
) -> contextlib.AbstractContextManager[Lease]:
    """The folder of the run's shards, for this process alone; raises as ``lease.claimed``. Who
    reads them needs no claim."""
    return claimed(config.shards, "data.shards", take_over=take_over, tell=tell)


def prepared(
    config: RunConfig, tell: Tell, renew: bool = True, take_over: bool = False
) -> Manifest:
    """The manifest of the run's shards; they are prepared first when they do not exist.

    Raises DataError when they do not hold what the config asks for. Shards of another source are
    prepared anew only where they are the run's own and it may overwrite; never without ``renew``:
    a run that is resumed needs those that it began with. LeaseHeld when another process prepares
    them, unless ``take_over``.
    """
    if not has_manifest(config.shards):
        with claimed_shards(config, tell, take_over):
            if not has_manifest(config.shards):  # else somebody was faster
                prepare_shards(config, tell)
    manifest = load_manifest(config.shards)
    asked = source_name(config)
    if asked is not None and manifest.source != asked:
        if not (renew and config.run.overwrite and config.data.shards is None):
            raise DataError(
                f"data.source: {asked}, but {config.shards} was prepared from {manifest.source}; "
                "allowed: another data.shards, or no data.source to train on what is there"
            )
        with claimed_shards(config, tell, take_over):
            prepare_shards(config, tell)
    manifest = load_prepared(config.shards, config.data)
    check_caption_keys(manifest, config.data.caption_keys)
    check_prompt_pairs(manifest, config.context.prompt_pairs)
    if config.context.needs.references:
        check_references(manifest)
    return manifest


def prepare_shards(config: RunConfig, tell: Tell) -> Manifest:
    """Prepare ``data.source`` into the shards, which are claimed. Ray must be up.

    Raises ConfigError when there is no source, DataError as ``data.prepare.run.prepare`` does.
    """
    source = config.data.source
    if source is None:
        raise no_source(config)
    settings = prepare_settings(config.data, config.run.seed)
    with temporary_folder("shapes") as folder:
        if source.startswith(SHAPES):
            source = _render(config, source.removeprefix(SHAPES), Path(folder))
        return prepare(
            source,
            config.shards,
            settings,
            lambda stage, done, total: tell(f"{stage}: {done} of {total}"),
            overwrite=config.run.overwrite,
            name=source_name(config),
        )


def _render(config: RunConfig, concept: str, folder: Path) -> str:
    from dopsd.shapes.concepts import CONCEPTS, write_concept_set

    if concept not in CONCEPTS:
        raise ConfigError(
            f"data.source: shapes:{concept}, allowed: "
            + ", ".join(f"shapes:{name}" for name in sorted(CONCEPTS))
        )
    return str(write_concept_set(concept, folder, config.data.shapes_count, config.run.seed))


def plan_of(config: RunConfig, manifest: Manifest) -> Plan:
    """The run's plan: which samples each step holds."""
    weights: dict[str, float] = {**manifest.repeats, **config.data.concept_weights}
    if config.data.prior.prompts is not None and PRIOR in manifest.concepts:
        weights[PRIOR] = config.data.prior.weight
    learner = config.learner
    groups, seed = manifest.row_groups, config.run.seed
    return Plan(groups, seed, learner.global_batch, learner.micro_batch, weights)


def read_spec(config: RunConfig) -> ReadSpec:
    """What the run's stream reads of each sample: what its context and objective look at."""
    needs = config.context.needs
    sees_target = needs.image and config.method.objective != "sft"
    return ReadSpec(
        caption_keys=tuple(config.data.caption_keys),
        caption_dropout=config.data.caption_dropout,
        prompt_pairs=tuple(config.context.prompt_pairs),
        images=sees_target or config.method.needs_targets,
        reference_pixels=config.context.reference_max_pixels if needs.references else 0,
        reference_multiple=config.data.bucket_multiple,
    )


def preview_samples(config: RunConfig, manifest: Manifest, count: int) -> list[Sample]:
    """The first ``count`` samples of the plan, the base's own left out, with images and the
    captions of epoch 0."""
    # Without prompts, a concept of that name is the user's own.
    own = manifest if config.data.prior.prompts is None else without_prior(manifest)
    plan = plan_of(config, own)
    groups = RowGroups(config.shards, replace(read_spec(config), images=True, caption_dropout=0.0))
    samples: list[Sample] = []
    for batch in plan.micro_batches(0, plan.steps_per_epoch):
        if len(samples) >= count:
            break
        samples += samples_of(read_micro_batch(batch, groups, config.run.seed))
    return samples[:count]


def captions_of(config: RunConfig, manifest: Manifest) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, captions by key) of every sample, in the order of the shards; no picture is
    read."""
    groups = RowGroups(config.shards, ReadSpec(images=False))
    for group in manifest.row_groups:
        for number in range(group.rows):
            row = groups.row(RowRef(group.file, group.row_group, number))
            yield row["sample_id"], row["captions"]


def no_source(config: RunConfig) -> ConfigError:
    """What a run without any data is refused with."""
    return ConfigError(
        f"data.source: missing, and data.shards ({config.shards}) holds no prepared data set"
    )
