"""Concepts that a config names are those of its data: asked as soon as these are known."""

from __future__ import annotations

import os
from collections.abc import Collection

from dopsd.config import RunConfig
from dopsd.data.manifest import load_manifest
from dopsd.data.planning.order import check_concepts
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.run_data import has_shards
from dopsd.data.shapes_source import SHAPES, check_shapes_source, listed_shapes
from dopsd.data.sources.listed import source_concepts
from dopsd.data.sources.read import read_source
from dopsd.files import storage


def refuse_unknown_concepts(config: RunConfig, anew: bool = False, offline: bool = False) -> None:
    """Before any cluster: raises ConfigError for a `shapes:` source that there is not, DataError
    for a concept that the config names and the data does not have. ``anew``: of shards that are
    there nothing will be left. ``offline``: S3 is asked nothing, so that what only prints needs no
    bucket."""
    source = config.data.source
    if source is not None and source.startswith(SHAPES):
        check_shapes_source(source)
    asked = config.data.named_concepts
    if any(asked.values()) and (known := _known(config, anew, offline)) is not None:
        for key, names in asked.items():
            check_concepts(key, names, known)


def _known(config: RunConfig, anew: bool, offline: bool) -> Collection[str] | None:
    """The concepts of shards that are there, else those of the source's listing; None where listing
    takes as long as preparing does, which then asks the same."""
    asked = not anew and not (offline and storage.is_remote(config.shards))
    if asked and has_shards(config):
        return load_manifest(config.shards).concepts
    source = config.data.source
    if source is None:
        return None
    if source.startswith(SHAPES):
        return {concept for concept, _, _ in listed_shapes(config, source)}
    if storage.is_remote(source) or not os.path.exists(source):
        return None
    settings = prepare_settings(config.data, config.run.seed)
    return source_concepts(read_source(source, settings))
