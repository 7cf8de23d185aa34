"""What a library holds: its concepts with their pictures, captions and steps, and which of them are
skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest, has_manifest, load_manifest
from dopsd.data.planning.order import check_concepts
from dopsd.data.prepare.run import prepare_settings
from dopsd.data.run_data import no_source
from dopsd.data.shapes_source import SHAPES, listed_shapes
from dopsd.data.sources.listed import Listed, listed_samples
from dopsd.data.sources.read import read_source
from dopsd.errors import ConfigError, DataError, message_line
from dopsd.files import storage
from dopsd.library.catalogue.names import refuse_alike
from dopsd.library.catalogue.recipe import Recipes


@dataclass(frozen=True)
class Concept:
    """One concept of the data."""

    name: str
    pictures: int
    captions: int
    steps: int
    """Optimizer steps, if none ends early."""
    skip: str = ""
    """Why it is not trained, if it is not."""


@dataclass(frozen=True)
class Catalogue:
    """Every concept of the data, by name; without those that ``data.concepts`` leaves out."""

    concepts: dict[str, Concept]
    unnamed: int = 0
    """Pictures without a concept."""

    @property
    def trained(self) -> list[Concept]:
        """Those that train, in the order of their names."""
        return [concept for concept in self.concepts.values() if not concept.skip]

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason of those that do not."""
        return {name: concept.skip for name, concept in self.concepts.items() if concept.skip}

    def skips_by_kind(self) -> list[tuple[str, list[Concept]]]:
        """(kind of reason, its concepts), the most frequent first."""
        kinds: dict[str, list[Concept]] = {}
        for concept in self.concepts.values():
            if concept.skip:
                kinds.setdefault(concept.skip.partition(":")[0], []).append(concept)
        return sorted(kinds.items(), key=lambda kind: -len(kind[1]))


@dataclass
class _Tally:
    pictures: int = 0
    captions: int = 0
    unusable: int = 0
    """Pictures that have none of the captions which are asked for."""
    lost: Counter[str] = field(default_factory=Counter)
    """Pictures that were left out, by kind of reason."""


def catalogue_of(config: RunConfig, samples: Iterable[Listed], recipes: Recipes) -> Catalogue:
    """The catalogue of the ``samples`` of a source or of prepared shards.

    Raises ConfigError or DataError in one line when the data has no concepts, when two of them are
    one name spelled in two ways, when the config names concepts that are not there, or when nothing
    is left to train.
    """
    tallies = _tallied(config, samples)
    unnamed = tallies.pop("", _Tally())
    if not tallies:
        raise ConfigError(
            "data.source: its pictures have no concepts, allowed: a folder for each concept, or a "
            "column of that name in .jsonl and .parquet files (data.columns={concept: NAME})"
        )
    refuse_alike(tallies)
    chosen = config.data.concepts or tallies
    for key, names in config.data.named_concepts.items():
        check_concepts(key, names, tallies)
    recipes.refuse_unmatched(tallies)
    concepts = {
        name: _concept(config, name, tally, recipes)
        for name, tally in sorted(tallies.items())
        if name in chosen
    }
    catalogue = Catalogue(concepts, unnamed.pictures if not config.data.concepts else 0)
    if not catalogue.trained:
        kinds = "; ".join(
            f"{len(own)} x {kind}, e.g. {shown.value(own[0].name)}: {own[0].skip}"
            for kind, own in catalogue.skips_by_kind()
        )
        raise DataError(f"nothing to train: all {len(concepts)} concepts are skipped ({kinds})")
    return catalogue


def known_catalogue(config: RunConfig, recipes: Recipes) -> Catalogue:
    """The catalogue as far as it is known without Ray and pictures: of shards, else of the source's
    listing. Raises as :func:`catalogue_of`."""
    if has_manifest(config.shards):
        manifest = load_manifest(config.shards)
        return catalogue_of(config, prepared_samples(manifest, config.shards), recipes)
    source = config.data.source
    if source is None:
        raise no_source(config)
    if source.startswith(SHAPES):
        return catalogue_of(config, listed_shapes(config, source), recipes)
    settings = prepare_settings(config.data, config.run.seed)
    return catalogue_of(config, listed_samples(read_source(source, settings)), recipes)


def _tallied(config: RunConfig, samples: Iterable[Listed]) -> dict[str, _Tally]:
    keys, pairs = {*config.data.caption_keys}, [{*pair} for pair in config.context.prompt_pairs]
    if not config.context.needs.prompt_pairs:
        pairs = []
    tallies: dict[str, _Tally] = {}
    for concept, captions, problem in samples:
        tally = tallies.get(concept)
        if tally is None:
            tally = tallies[concept] = _Tally()
        if problem:
            tally.lost[problem.partition(":")[0]] += 1
            continue
        tally.pictures += 1
        tally.captions += 1 if captions is None else len(captions)
        if captions is not None and (
            (keys and keys.isdisjoint(captions))
            or (pairs and not any(pair <= {*captions} for pair in pairs))
        ):
            tally.unusable += 1
    return tallies


def _concept(config: RunConfig, name: str, tally: _Tally, recipes: Recipes) -> Concept:
    steps = recipes.steps(name, tally.pictures)
    return Concept(name, tally.pictures, tally.captions, steps, _skip(config, name, tally))


def _skip(config: RunConfig, name: str, tally: _Tally) -> str:
    least = config.library.min_images
    if tally.pictures < least:
        lost = "; ".join(f"{count} x {kind}" for kind, count in tally.lost.most_common())
        beside = f", beside {tally.lost.total()} left out ({lost})" if lost else ""
        return f"too few pictures: {tally.pictures}, library.min_images: {least}{beside}"
    if tally.unusable:
        asked = "data.caption_keys" if config.data.caption_keys else "context.prompt_pairs"
        return f"no caption: {tally.unusable} of {tally.pictures} pictures have none of {asked}"
    if config.data.concept_weights.get(name) == 0:
        return "data.concept_weights: 0"
    return ""


def prepared_samples(manifest: Manifest, shards: str) -> Iterator[Listed]:
    """The samples of prepared shards, and those that were left out of them. No picture is read,
    and no caption where all samples have the same keys."""
    for entry in manifest.quarantined:
        for _ in range(entry.samples):
            yield entry.concept, (), entry.reason
    if len(manifest.caption_sets) == 1:
        keys = manifest.caption_sets[0].keys
        for concept, count in manifest.concepts.items():
            for _ in range(count):
                yield concept, keys, ""
        return
    for file in sorted({group.file for group in manifest.row_groups}):
        path = storage.join(shards, file)
        try:
            with storage.open_input(path) as source:
                rows = pq.read_table(source, columns=["concept", "captions"]).to_pylist()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, but the manifest names it") from None
        except (OSError, ValueError, ArithmeticError) as error:
            raise DataError(f"{path}: cannot be read: {message_line(error)}") from None
        for row in rows:
            yield row["concept"] or "", tuple(key for key, _ in row["captions"]), ""
