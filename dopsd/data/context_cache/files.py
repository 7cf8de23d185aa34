"""The context cache, contexts encoded before training: its files beside the shards, and reading.

A folder ``encoded-<fingerprint>`` holds one parquet file for each row group of the shards. Each of
its own row groups is one sample under one prompt, so that a micro-batch reads exactly its rows,
however large contexts are; the index stands in the footer. ``encoded.json``, written last, makes
the folder complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dopsd.data.manifest import Manifest
from dopsd.data.planning.plan import MicroBatch, Plan, RowRef
from dopsd.data.read import ReadSpec, RowGroups, SegmentReader, read_micro_batch
from dopsd.data.schema import without_generation
from dopsd.data.stream.block import encoded_block
from dopsd.errors import DataError, DopsdError, message_line
from dopsd.files import storage
from dopsd.files.seal import unsealed
from dopsd.readers import Object, checked, read_json
from dopsd.records import Context, EncodedBatch, EncodedSample, SampleInfo, join_samples

PREFIX = "encoded-"
RECORD = "encoded.json"
FORMAT: Literal["dopsd-encoded"] = "dopsd-encoded"
META_KEY = "dopsd.encoded"
RERUN_HINT = "run `dopsd prepare CONFIG --cache-contexts` again"
Entries = dict[str, Any]
"""What contexts were made of: flat, plain values. A list holds every choice that was encoded."""
_OPTIONAL = ("teacher", "latents", "empty_prompt")
"""What a run that does not need it can leave unread."""


Count = Annotated[int, Field(ge=0)]


class CacheRecord(BaseModel):
    """``encoded.json``: what the contexts were made of, and the files that hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dopsd-encoded"] = FORMAT
    version: Literal[2] = 2
    fingerprint: str
    entries: Entries
    samples: Count
    files: dict[str, Count]
    """Bytes of each file."""
    versions: dict[str, str]
    """Libraries that made them; for people, not compared."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class ContextCache:
    """A complete context cache that fits a run, and what the run reads of it."""

    folder: str
    fingerprint: str
    entries: Entries = field(hash=False)
    teacher: bool
    latents: bool
    digest: str
    """Of its record: a folder that was made again is another cache."""


def cache_file(file: str, row_group: int) -> str:
    """Where the contexts of a row group of the shards are, inside the folder."""
    return f"{without_generation(file).removesuffix('.parquet')}-{row_group:05d}.parquet"


def prompt_key(prompt: str, teacher_prompt: str | None) -> str:
    """Stands for the texts of both roles in a file's index."""
    return hashlib.sha256(json.dumps([prompt, teacher_prompt]).encode()).hexdigest()[:24]


def differences(recorded: Mapping[str, Any], needed: Mapping[str, Any]) -> list[str]:
    """What is ``needed`` and contexts of the entries ``recorded`` do not hold, a line for each;
    empty when they fit."""
    lines = []
    for key, value in needed.items():
        have = recorded.get(key)
        if isinstance(value, list) and isinstance(have, list):
            fits = all(choice in have for choice in value)
        else:
            fits = have == value or (key in _OPTIONAL and not value)
        if not fits:
            lines.append(f"{key}: {_short(have)} there, {_short(value)} needed")
    return lines


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def load_record(folder: str) -> CacheRecord:
    """The record of a complete folder.

    Raises DataError when there is none, or when it cannot be read.
    """
    path = storage.join(folder, RECORD)
    if not storage.exists(path):
        raise DataError(f"{folder}: not finished (it has no {RECORD}); {RERUN_HINT}")
    try:
        return checked(unsealed(read_json(path, Object)), path, CacheRecord, DataError)
    except DataError as error:
        raise DataError(f"{error}; {RERUN_HINT}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; {RERUN_HINT}") from None


def check_files(folder: str, record: CacheRecord, manifest: Manifest) -> None:
    """Raises DataError when the record is of another number of samples, when a file of it is
    missing or has another size, or when a row group of the data has none."""
    if record.samples != manifest.samples:
        raise DataError(
            f"{folder}: of {record.samples} samples, the data has {manifest.samples}; {RERUN_HINT}"
        )
    sizes = dict(storage.list_files(folder))
    for group in manifest.row_groups:
        if (name := cache_file(group.file, group.row_group)) not in record.files:
            raise DataError(f"{folder}: holds nothing for {group.file}; {RERUN_HINT}")
        if sizes.get(name) != record.files[name]:
            actual = f"{sizes[name]} bytes" if name in sizes else "missing"
            raise DataError(
                f"{storage.join(folder, name)}: {actual}, {RECORD} says "
                f"{record.files[name]} bytes; take the folder away and {RERUN_HINT}"
            )


class CachedRows:
    """Rows of a context cache; of every file the index is kept, of no row a byte."""

    def __init__(self, cache: ContextCache) -> None:
        self.cache = cache
        self._opened: dict[str, tuple[pq.FileMetaData, dict[tuple[str, str], int]]] = {}

    def sample(
        self, ref: RowRef, sample_id: str, prompt: str, teacher_prompt: str | None
    ) -> EncodedSample:
        """What the encoders made of a sample; without what the run does not read.

        Raises DataError when the file is missing or broken, was made of anything else than the
        folder, or does not hold this sample under these prompts.
        """
        path = storage.join(self.cache.folder, cache_file(ref.file, ref.row_group))
        try:
            with storage.open_input(path) as source:
                if path not in self._opened:
                    self._opened[path] = self._open(path, source)
                footer, index = self._opened[path]
                number = index.get((sample_id, prompt_key(prompt, teacher_prompt)))
                if number is None:
                    raise DataError(
                        f"{path}: holds no contexts of sample {sample_id} with the prompt "
                        f"{prompt[:80]!r}; {RERUN_HINT}"
                    )
                parquet = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
                (payload,) = parquet.read_row_group(number).column("payload").to_pylist()
            sample: EncodedSample = EncodedSample.from_bytes(payload)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; {RERUN_HINT}") from None
        except DopsdError:
            raise
        except Exception as error:  # pyarrow raises many kinds on files that are broken
            raise DataError(f"{path}: cannot be read: {message_line(error)}") from None
        return EncodedSample(
            sample.student,
            sample.teacher if self.cache.teacher else None,
            sample.target if self.cache.latents else None,
            sample.class_student,
        )

    def _open(self, path: str, source: Any) -> tuple[pq.FileMetaData, dict[tuple[str, str], int]]:
        footer = pq.read_metadata(source)
        try:
            meta = json.loads((footer.metadata or {})[META_KEY.encode()])
        except KeyError:
            raise DataError(f"{path}: no file of a context cache; {RERUN_HINT}") from None
        if meta["fingerprint"] != self.cache.fingerprint:
            differ = differences(meta["entries"], self.cache.entries)
            raise DataError(
                f"{path}: a file of {meta['fingerprint']} in a cache of "
                f"{self.cache.fingerprint}: {'; '.join(differ)}; remove the folder and "
                f"{RERUN_HINT}"
            )
        return footer, {(name, key): number for number, (name, key) in enumerate(meta["index"])}


def read_cached(batch: MicroBatch, groups: RowGroups, rows: CachedRows, seed: int) -> EncodedBatch:
    """One micro-batch as its encoder would have made it; ``groups`` read captions alone."""
    values = read_micro_batch(batch, groups, seed)
    ids, prompts = values["sample_ids"], values["prompts"]
    teacher_prompts = values["teacher_prompts"] or [None] * len(ids)
    samples = list(map(rows.sample, batch.rows, ids, prompts, teacher_prompts))
    kept = None
    if values["class_prompts"]:
        kept = Context.joined([sample.class_student for sample in samples if sample.class_student])
    encoded = join_samples(samples)
    return EncodedBatch(SampleInfo.of(values), *encoded, pixel_mask(values), kept)


class CachedSegmentReader(SegmentReader):
    """Of contexts that were encoded before: its blocks are those that encoders make."""

    def __init__(
        self, plan: Plan, shards: str, read_spec: ReadSpec, context_cache: ContextCache
    ) -> None:
        super().__init__(plan, shards, replace(read_spec, images=False, reference_pixels=0))
        self._rows = CachedRows(context_cache)

    def _block(self, batch: MicroBatch) -> pa.Table:
        return encoded_block(read_cached(batch, self._groups, self._rows, self._plan.seed))


def pixel_mask(values: Mapping[str, Any]) -> Tensor | None:
    """The masks of a row of ``read.READ_SCHEMA``: uint8 [B, H, W], None where there are none."""
    if values["mask"] is None:
        return None
    shape = (len(values["sample_ids"]), values["height"], values["width"])
    return torch.frombuffer(bytearray(values["mask"]), dtype=torch.uint8).reshape(shape)
