"""A run's data: shards that exist or are prepared now, its plan, and samples for previews."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

from dopsd.config import RunConfig
from dopsd.config.data import PRIOR
from dopsd.data.manifest import Manifest, RowRef, has_manifest, load_manifest
from dopsd.data.pictures.absent import check_pictures
from dopsd.data.pictures.references import check_references
from dopsd.data.planning.captions import check_caption_keys, check_prompt_pairs
from dopsd.data.planning.class_words import ClassWords, check_class_words
from dopsd.data.planning.concepts import concept_groups, restricted, rows_of
from dopsd.data.planning.join import without_prior
from dopsd.data.planning.order import PlannedGroup, Rows, check_concepts
from dopsd.data.planning.plan import MicroBatch, Plan
from dopsd.data.prepare.run import load_prepared, prepare
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.read import ReadSpec, RowGroups, read_micro_batch, samples_of
from dopsd.data.sample import Sample
from dopsd.data.shapes_source import SHAPES, shapes_name, write_shapes
from dopsd.errors import ConfigError, DataError
from dopsd.files import storage
from dopsd.ownership.lease import Lease, claimed
from dopsd.ownership.scratch import temporary_folder

Tell = Callable[[str], None]
"""Called with what is being done now."""


def source_name(config: RunConfig) -> str | None:
    """What the manifest calls the run's source: an absolute path, a URL, or the shapes set."""
    source = config.data.source
    if source is None or storage.is_remote(source):
        return source
    if source.startswith(SHAPES):
        return shapes_name(config, source)
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
    """The manifest of the run's shards, as :func:`prepared_shards` finds or makes them.

    Raises DataError when its samples do not have what the config asks for.
    """
    manifest = prepared_shards(config, tell, renew, take_over)
    chosen = chosen_samples(config, manifest)
    check_caption_keys(chosen, config.data.caption_keys)
    check_prompt_pairs(chosen, config.context.prompt_pairs)
    check_preserved(config, manifest)
    if config.context.needs.references:
        check_references(manifest)
    check_pictures(config, chosen)
    return manifest


def prepared_shards(
    config: RunConfig, tell: Tell, renew: bool = True, take_over: bool = False
) -> Manifest:
    """The manifest of the run's shards; they are prepared first when they do not exist.

    Raises DataError when they are of other data. Shards of another source are prepared anew only
    where they are the run's own and it may overwrite; never without ``renew``: a run that is
    resumed needs those that it began with. LeaseHeld when another process prepares them, unless
    ``take_over``.
    """
    if not has_manifest(config.shards):
        with claimed_shards(config, tell, take_over):
            if not has_manifest(config.shards):  # else somebody was faster
                prepare_shards(config, tell)
    manifest = load_manifest(config.shards)
    if not _is_of_source(config, manifest):
        if not (renew and config.run.overwrite and config.data.shards is None):
            check_source(config, manifest)
        with claimed_shards(config, tell, take_over):
            prepare_shards(config, tell)
    return load_prepared(config.shards, config.data)


def has_shards(config: RunConfig) -> bool:
    """Whether the run's data is there, so that nothing has to be prepared."""
    return has_manifest(config.shards) and _is_of_source(config, load_manifest(config.shards))


def check_source(config: RunConfig, manifest: Manifest) -> None:
    """Raises DataError when the shards were prepared from another source than the config names."""
    if not _is_of_source(config, manifest):
        raise DataError(
            f"data.source: {source_name(config)}, but {config.shards} was prepared from "
            f"{manifest.source}; allowed: another data.shards, or no data.source to train on what "
            "is there"
        )


def _is_of_source(config: RunConfig, manifest: Manifest) -> bool:
    asked = source_name(config)
    return asked is None or manifest.source == asked


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
            source = write_shapes(config, source, Path(folder))
        return prepare(
            source,
            config.shards,
            settings,
            lambda stage, done, total: tell(f"{stage}: {done} of {total}"),
            overwrite=config.run.overwrite,
            name=source_name(config),
            named=config.data.named_concepts,
        )


def sample_count(config: RunConfig, manifest: Manifest) -> int:
    """Samples that the run trains on."""
    chosen = config.data.concepts
    return sum(map(manifest.concepts.__getitem__, chosen)) if chosen else manifest.samples


def chosen_samples(config: RunConfig, manifest: Manifest) -> Manifest:
    """The manifest as it tells of samples and captions that the run trains on. Raises DataError for
    a concept of ``data.concepts`` that is not in the data."""
    chosen = config.data.concepts
    return restricted(manifest, config.shards, chosen) if chosen else manifest


def concept_weights(config: RunConfig, manifest: Manifest) -> dict[str, float]:
    """How often samples of a concept come, relative to others: the config's word before that of
    the source (kohya's repeats); 1 where neither says."""
    return {**manifest.repeats, **config.data.concept_weights}


def plan_of(config: RunConfig, manifest: Manifest) -> Plan:
    """The run's plan: which samples each step holds."""
    weights = _balanced(config, manifest)
    groups: tuple[PlannedGroup, ...] = manifest.row_groups
    if chosen := config.data.concepts:
        check_concepts("data.concept_weights", weights, manifest.concepts)
        weights = {name: weight for name, weight in weights.items() if name in chosen}
        own = manifest if config.data.prior.prompts is None else without_prior(manifest)
        groups = tuple(chain.from_iterable(concept_groups(own, chosen).values()))
        groups += manifest.row_groups[len(own.row_groups) :]  # the prior's, which come last
    if config.data.prior.prompts is not None and PRIOR in manifest.concepts:
        weights[PRIOR] = _prior_weight(config, groups, weights)
    return plan_of_groups(config, groups, weights)


def _prior_weight(
    config: RunConfig, groups: tuple[PlannedGroup, ...], weights: Mapping[str, float]
) -> float:
    """How often each of the base's own samples comes per epoch: as often as the config says, or so
    that they are its share of all draws."""
    share = config.data.prior.share
    if share is None:
        return config.data.prior.weight
    there = sum(
        rows
        for name, rows in chain.from_iterable(group.concepts for group in groups)
        if name == PRIOR
    )
    # Of the data as it is drawn: a cell of few samples and a small weight comes once all the same.
    cells = Rows(groups, tuple({**weights, PRIOR: 0.0}.items())).cells
    own = sum(cell.draws for cell in chain.from_iterable(cells.values()))
    return share / (1 - share) * own / there


def _balanced(config: RunConfig, manifest: Manifest) -> dict[str, float]:
    """``concept_weights`` as data.balance asks for. An epoch stays as long as it is where concepts
    come equally often; a library, which trains each by itself, has nothing to balance."""
    if config.data.balance == "samples":
        return concept_weights(config, manifest)
    given, chosen = config.data.concept_weights, config.data.concepts
    prior = None if config.data.prior.prompts is None else PRIOR
    counts = {
        name: count
        for name, count in manifest.concepts.items()
        if name != prior and given.get(name, 1.0) and (not chosen or name in chosen)
    }
    total = sum(counts.values())
    equal = {name: total / (len(counts) * count) for name, count in counts.items()}
    return {**given, **{name: given.get(name, 1.0) * weight for name, weight in equal.items()}}


def plan_of_groups(
    config: RunConfig, groups: tuple[PlannedGroup, ...], weights: Mapping[str, float]
) -> Plan:
    """The plan over ``groups``, under the run's seed and batch sizes."""
    learner, seed = config.learner, config.run.seed
    return Plan(groups, seed, learner.global_batch, learner.micro_batch, weights)


def read_spec(config: RunConfig) -> ReadSpec:
    """What the run's stream reads of each sample: what its context and objective look at."""
    needs = config.context.needs
    return ReadSpec(
        caption_keys=tuple(config.data.caption_keys),
        caption_dropout=config.data.caption_dropout,
        prompt_pairs=tuple(config.context.prompt_pairs),
        images=config.sees_pictures,
        reference_pixels=config.context.reference_max_pixels if needs.references else 0,
        reference_multiple=config.data.bucket_multiple,
        class_words=ClassWords.from_config(config),
        masks=config.data.masks,
    )


def preview_samples(
    config: RunConfig, manifest: Manifest, count: int, pictured: bool = False
) -> list[Sample]:
    """The first ``count`` samples of the plan, the base's own left out, with images and the
    captions of epoch 0; with ``pictured`` of those that have a picture, fewer if there are fewer:
    no stand-in is drawn to find them, and nothing is read where the manifest knows of none."""
    # Without prompts, a concept of that name is the user's own.
    own = manifest if config.data.prior.prompts is None else without_prior(manifest)
    plan = plan_of(config, own)
    if pictured:
        count = min(count, _pictured(config, own, plan))
    spec = replace(read_spec(config), images=True, stand_ins=True, caption_dropout=0.0)
    groups = RowGroups(config.shards, spec)
    samples: list[Sample] = []
    for batch in plan.micro_batches(0, plan.steps_per_epoch):
        if len(samples) >= count:
            break
        if pictured and not (batch := _with_pictures(batch, groups)).rows:
            continue
        samples += samples_of(read_micro_batch(batch, groups, config.run.seed))
    return samples[:count]


def _pictured(config: RunConfig, manifest: Manifest, plan: Plan) -> int:
    """Samples with a picture that the plan draws, as the manifest counts them."""
    weights, texts = dict(plan.rows.weights), manifest.without_picture
    return sum(
        count - (texts[name].samples if name in texts else 0)
        for name, count in manifest.concepts.items()
        if name in (config.data.concepts or manifest.concepts) and weights.get(name, 1.0)
    )


def _with_pictures(batch: MicroBatch, groups: RowGroups) -> MicroBatch:
    """What of ``batch`` has a picture; none of them is decoded."""
    there = [groups.row(ref)["image"] is not None for ref in batch.rows]
    return replace(
        batch,
        rows=tuple(compress(batch.rows, there)),
        turns=tuple(compress(batch.turns, there)),
        repeats=tuple(compress(batch.repeats, there)),
    )


def check_preserved(config: RunConfig, manifest: Manifest, *, alone: bool = False) -> None:
    """Raises DataError where nothing that the run trains on has a class word that is preserved, as
    :func:`check_class_words` does; ``alone``: where that is so for one of its concepts."""
    texts = ((row["concept"], row["captions"]) for row in text_rows(config, manifest))
    check_class_words(config, manifest, texts, alone=alone)


def captions_of(config: RunConfig, manifest: Manifest) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, captions by key) of every sample that the run trains on, in the order of the
    shards; no picture is read."""
    return ((row["sample_id"], row["captions"]) for row in text_rows(config, manifest))


def text_rows(config: RunConfig, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The rows of every sample that the run trains on, the same way, as ``RowGroups.row`` reads
    them."""
    groups = RowGroups(config.shards, ReadSpec(images=False))
    refs: Iterable[RowRef] = (g.ref(row) for g in manifest.row_groups for row in range(g.rows))
    if config.data.concepts:
        refs = sorted(rows_of(manifest, config.data.concepts))
    for ref in refs:
        yield groups.row(ref)


def no_source(config: RunConfig) -> ConfigError:
    """What a run without any data is refused with."""
    return ConfigError(
        f"data.source: missing, and data.shards ({config.shards}) holds no prepared data set"
    )
