"""Writes the context cache: the contexts of every sample under every prompt, beside the shards.

One Ray Data pass over the row groups; each becomes a file, so that a pass that was broken off
resumes with the files that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from dopsd import __version__
from dopsd.data.context_cache.files import (
    FORMAT,
    META_KEY,
    RECORD,
    CacheRecord,
    Entries,
    cache_file,
    prompt_key,
)
from dopsd.data.manifest import Manifest
from dopsd.data.planning.captions import every_prompt
from dopsd.data.planning.plan import RowRef
from dopsd.data.prepare.run import Progress
from dopsd.data.ray_data import LazyActorState, absolute_path, map_items, shipping_errors
from dopsd.data.read import ReadSpec, RowGroups, row_image, row_references
from dopsd.data.sample import Encoder, EncoderFactory, Sample
from dopsd.errors import StorageError
from dopsd.files import pieces, storage
from dopsd.files.seal import sealed
from dopsd.ownership.ownership import OwnedFolder
from dopsd.records import EncodedSample

SCHEMA = pa.schema([("sample_id", pa.string()), ("payload", pa.large_binary())])
_LIBRARIES = ("torch", "transformers", "diffusers")


def write_context_cache(
    shards: str,
    folder: str,
    manifest: Manifest,
    read_spec: ReadSpec,
    fingerprint: str,
    entries: Entries,
    encoder_factory: EncoderFactory,
    *,
    workers: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CacheRecord:
    """Encode the whole data set into ``folder``; files that are there already are kept.

    ``entries``: what ``encoder_factory`` and ``read_spec`` stand for, with their ``fingerprint``;
    ``workers`` encoder actors take ``num_cpus`` and ``num_gpus`` each, with more of Ray's
    ``options``. Ray must be initialised.
    Raises DopsdErrors of encoders and reading with their own message, ConfigError where a file of
    somebody else's is in the way.
    """
    tell = progress or (lambda stage, done, total: None)
    shards, folder = absolute_path(shards), absolute_path(folder)
    rows = {cache_file(group.file, group.row_group): group for group in manifest.row_groups}
    own = OwnedFolder(folder, "contexts", "data.shards")
    if own.record() is None:  # of a dopsd that kept no record
        own.adopt(*(name for name in rows if _is_cache_file(storage.join(folder, name))))
    own.claim(RECORD, *rows)
    kept = {name for name, _ in storage.list_files(folder)}
    todo = [
        {"file": group.file, "row_group": group.row_group, "rows": group.rows}
        for name, group in rows.items()
        if name not in kept
    ]
    done = sum(group.rows for name, group in rows.items() if name in kept)
    tell("encoding contexts", done, manifest.samples)
    tables = map_items(
        todo,
        _EncodeGroup,
        1,
        "encoder",
        fn_constructor_args=(encoder_factory, shards, folder, read_spec, fingerprint, entries),
        compute=ray.data.ActorPoolStrategy(size=max(1, min(workers, len(todo)))),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **(options or {}),
    )
    for batch in tables:
        done += sum(batch["rows"].to_pylist())
        tell("encoding contexts", done, manifest.samples)
    sizes = dict(storage.list_files(folder))
    for name in sizes:  # what an encoder that died left half written
        if (whole := storage.TEMPORARY.fullmatch(name)) and whole[1] in rows:
            storage.remove(storage.join(folder, name))
    record = CacheRecord(
        fingerprint=fingerprint,
        entries=entries,
        samples=manifest.samples,
        files={name: sizes[name] for name in sorted(rows)},
        versions=_versions(),
    )
    storage.write_bytes(storage.join(folder, RECORD), sealed(record.model_dump(mode="json")))
    return record


def _is_cache_file(path: str) -> bool:
    try:
        with storage.open_input(path) as source:
            return META_KEY.encode() in (pq.read_metadata(source).metadata or {})
    except (OSError, StorageError, ValueError):  # missing, or no parquet
        return False


def _versions() -> dict[str, str]:
    # Ours has no metadata where the package is on the path without being installed.
    return {"dopsd": __version__, **{name: version(name) for name in _LIBRARIES}}


class _EncodeGroup:
    """The actor of the pool: one row group of the shards in, one file out."""

    def __init__(self, factory: EncoderFactory, *arguments: Any) -> None:
        self._writer = LazyActorState(lambda: GroupWriter(factory(), *arguments))

    def __call__(self, batch: pa.Table) -> pa.Table:
        with shipping_errors():
            (item,) = batch.to_pylist()
            self._writer.get().write(item["file"], item["row_group"], item["rows"])
            return batch


class GroupWriter:
    """Writes the file of a row group; arguments as :func:`write_context_cache` takes them."""

    def __init__(
        self,
        encoder: Encoder,
        shards: str,
        folder: str,
        read_spec: ReadSpec,
        fingerprint: str,
        entries: Entries,
    ) -> None:
        self.encoder, self.folder, self.read_spec = encoder, folder, read_spec
        self._identity = {"format": FORMAT, "fingerprint": fingerprint, "entries": entries}
        self._groups = RowGroups(shards, read_spec)

    def write(self, file: str, row_group: int, count: int) -> None:
        """Encode the ``count`` rows of a row group. One payload is in memory at a time."""
        rows = [self._groups.row(RowRef(file, row_group, row)) for row in range(count)]
        prompts = [(row, texts) for row in rows for texts in self._prompts(row)]
        index = [(row["sample_id"], prompt_key(*texts)) for row, texts in prompts]
        meta = {META_KEY: json.dumps(self._identity | {"index": index})}
        path = storage.join(self.folder, cache_file(file, row_group))
        with (
            pieces.whole_file(path) as sink,
            # As the shards are written; the checksums tell a page that has decayed.
            pq.ParquetWriter(
                sink,
                SCHEMA,
                compression="NONE",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
                store_schema=False,
            ) as writer,
        ):
            writer.add_key_value_metadata(meta)
            for row, texts in prompts:
                payload = self._encode(row, *texts).to_bytes()
                record = {"sample_id": row["sample_id"], "payload": payload}
                writer.write_table(pa.Table.from_pylist([record], schema=SCHEMA))

    def _prompts(self, row: dict[str, Any]) -> list[tuple[str, str | None]]:
        read_spec = self.read_spec
        keys, pairs = read_spec.caption_keys, read_spec.prompt_pairs
        return every_prompt(row["captions"], keys, pairs, read_spec.caption_dropout)

    def _encode(
        self, row: dict[str, Any], prompt: str, teacher_prompt: str | None
    ) -> EncodedSample:
        sample = Sample(
            row["sample_id"],
            prompt,
            row_image(row) if self.read_spec.images else None,
            tuple(row_references(row, self.read_spec)) if self.read_spec.reference_pixels else (),
            teacher_prompt,
        )
        encoded = EncodedSample(*self.encoder.encode([sample]))
        if words := self.read_spec.class_words:
            kept = replace(sample, class_prompt=words.caption(prompt, row["concept"]))
            encoded.class_student = self.encoder.encode_class([kept])
        return encoded
