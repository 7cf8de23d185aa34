"""``dopsd prepare --cache-contexts``: the contexts of every sample and prompt, beside the shards.

One Ray Data pass over the row groups; each becomes a file, so that a pass that was broken off goes
on with the files that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from dopsd import __version__, storage
from dopsd.data.captions import every_prompt
from dopsd.data.context_cache.files import (
    FORMAT,
    META_KEY,
    RECORD,
    EncodedRecord,
    Entries,
    encoded_file,
    prompt_key,
)
from dopsd.data.encoder import Encoder, EncoderFactory
from dopsd.data.manifest import Manifest
from dopsd.data.plan import RowRef
from dopsd.data.prepare.run import MOST_TASKS, Progress
from dopsd.data.ray_data import (
    LazyActorState,
    absolute_path,
    quiet_context,
    shipping_errors,
    unwrap_error,
)
from dopsd.data.read import ReadSpec, RowGroups, row_image, row_references
from dopsd.data.sample import Sample
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
    progress: Progress | None = None,
) -> EncodedRecord:
    """Encode the whole data set into ``folder``; files that are there already are kept.

    ``entries``: what ``encoder_factory`` and ``read_spec`` stand for, with their ``fingerprint``;
    ``workers`` encoder actors take ``num_cpus`` and ``num_gpus`` each. Ray must be initialised.
    Raises DopsdErrors of encoders and reading with their own message.
    """
    tell = progress or (lambda stage, done, total: None)
    shards, folder = absolute_path(shards), absolute_path(folder)
    rows = {encoded_file(each.file, each.row_group): each for each in manifest.row_groups}
    kept = {name for name, _ in storage.list_files(folder)}
    todo = [
        {"file": group.file, "row_group": group.row_group, "rows": group.rows}
        for name, group in rows.items()
        if name not in kept
    ]
    done = sum(group.rows for name, group in rows.items() if name in kept)
    tell("encoding contexts", done, manifest.samples)
    arguments = (encoder_factory, shards, folder, read_spec, fingerprint, entries)
    for batch in _passed(todo, arguments, workers, num_cpus, num_gpus):
        done += sum(batch["rows"].to_pylist())
        tell("encoding contexts", done, manifest.samples)
    there = dict(storage.list_files(folder))
    for name in there.keys() - rows.keys() - {RECORD}:
        storage.remove(storage.join(folder, name))  # what an encoder that died left half written
    record = EncodedRecord(
        fingerprint=fingerprint,
        entries=entries,
        samples=manifest.samples,
        files={name: there[name] for name in sorted(rows)},
        versions=_versions(),
    )
    text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n"
    storage.write_bytes(storage.join(folder, RECORD), text.encode())
    return record


def _versions() -> dict[str, str]:
    # Ours has no metadata where the package is on the path without being installed.
    return {"dopsd": __version__, **{name: version(name) for name in _LIBRARIES}}


def _passed(
    todo: list[dict[str, Any]], arguments: Any, workers: int, num_cpus: float, num_gpus: float
) -> Iterator[pa.Table]:
    if not todo:
        return
    try:
        with ray.data.DataContext.current(quiet_context()):
            data: ray.data.Dataset = ray.data.from_items(
                todo, override_num_blocks=min(len(todo), MOST_TASKS)
            )
            data = data.map_batches(
                _EncodeGroup,
                fn_constructor_args=arguments,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )
            yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise unwrap_error(error, "encoder") from None


class _EncodeGroup:
    """The actor of the pool: one row group of the shards in, one file out."""

    def __init__(self, factory: EncoderFactory, *making: Any) -> None:
        self._writer = LazyActorState(lambda: GroupWriter(factory(), *making))

    def __call__(self, batch: pa.Table) -> pa.Table:
        with shipping_errors():
            (item,) = batch.to_pylist()
            self._writer.get().write(item["file"], item["row_group"], item["rows"])
            return batch


class GroupWriter:
    """Writes the encoded file of a row group of ``shards``; the rest as
    :func:`write_context_cache` says."""

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
        self._making = {"format": FORMAT, "fingerprint": fingerprint, "entries": entries}
        self._groups = RowGroups(shards, read_spec)

    def write(self, file: str, row_group: int, count: int) -> None:
        """Encode the ``count`` rows of a row group. One payload is in memory at a time."""
        rows = [self._groups.row(RowRef(file, row_group, row)) for row in range(count)]
        prompts = [(row, texts) for row in rows for texts in self._prompts(row)]
        index = [(row["sample_id"], prompt_key(*texts)) for row, texts in prompts]
        meta = {META_KEY: json.dumps(self._making | {"index": index})}
        path = storage.join(self.folder, encoded_file(file, row_group))
        with (
            storage.whole_file(path) as sink,
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
                payload = self._encoded(row, *texts).to_bytes()
                record = {"sample_id": row["sample_id"], "payload": payload}
                writer.write_table(pa.Table.from_pylist([record], schema=SCHEMA))

    def _prompts(self, row: dict[str, Any]) -> list[tuple[str, str | None]]:
        read_spec = self.read_spec
        keys, pairs = read_spec.caption_keys, read_spec.prompt_pairs
        return every_prompt(row["captions"], keys, pairs, read_spec.caption_dropout)

    def _encoded(
        self, row: dict[str, Any], prompt: str, teacher_prompt: str | None
    ) -> EncodedSample:
        sample = Sample(
            row["sample_id"],
            prompt,
            row_image(row) if self.read_spec.images else None,
            tuple(row_references(row, self.read_spec)) if self.read_spec.reference_pixels else (),
            teacher_prompt,
        )
        return EncodedSample(*self.encoder.encode([sample]))
