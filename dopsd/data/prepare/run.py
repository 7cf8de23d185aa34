"""``dopsd prepare``: any source to canonical shards, in two passes of Ray Data tasks.

The first pass decodes every picture and decides its bucket or its quarantine; the layout of the
shards follows from that alone. The second pass writes each shard in a task of its own. Pictures
are read twice (those that stand in parquet rows are set aside as files in between), but no pixel
ever passes through the driver, a task holds one row group of a shard at most, and the files come
out the same for any number of tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from dopsd.config import DataSection
from dopsd.data.manifest import (
    MANIFEST,
    CaptionSet,
    Manifest,
    PrepareSettings,
    Quarantined,
    RowGroup,
    Texts,
    check_shards,
    has_manifest,
    load_manifest,
    save_manifest,
)
from dopsd.data.planning.order import check_concepts
from dopsd.data.prepare.facts import Inspected
from dopsd.data.prepare.findings import findings
from dopsd.data.prepare.folder import (
    check_shards_folder,
    clear_unlisted,
    free_generation,
    listed_files,
    owned,
    remove_shards,
)
from dopsd.data.prepare.layout import Shard, lay_out
from dopsd.data.prepare.outcome import drop_duplicates, quarantine
from dopsd.data.prepare.settings import prepare_settings
from dopsd.data.prepare.shards import Inspector, write_shard
from dopsd.data.ray_data import absolute_path, map_items, shipping_errors
from dopsd.data.schema import shard_generation
from dopsd.data.sources.listed import source_concepts
from dopsd.data.sources.read import read_source
from dopsd.data.sources.rows import Group, Source, SourceRow, pack_row, unpack_row
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder
from dopsd.ownership.scratch import scratch_folder

ROWS_PER_TASK = 16
"""Pictures that an inspecting task takes at a time."""
_ASIDE = ".pictures-"
"""Of the scratch folder inside the shards for pictures out of parquet rows."""

Progress = Callable[[str, int, int], None]
"""(what is being done, how many are done, of how many)."""


def prepare(
    source: str,
    shards: str,
    settings: PrepareSettings,
    progress: Progress | None = None,
    overwrite: bool = False,
    cpus_per_task: float = 1.0,
    name: str | None = None,
    named: Mapping[str, Collection[str]] | None = None,
) -> Manifest:
    """Prepare ``source`` (as ``sources.read``, local or s3://) into the folder ``shards``.

    ``name`` is what the manifest calls the source (default: ``source``); concepts that are
    ``named``, by config key, have to be in it, as is seen before any picture is. Ray must be
    initialised.
    The same source, settings and seed give the same bytes. Raises DataError when ``shards`` is a
    data set already and ``overwrite`` is off, when it is a folder of somebody else's, when more
    than ``settings.max_bad_fraction`` of the samples are bad, and when none is good. A data set
    that is replaced stays whole until the new one is: its shards have other names, the manifest is
    exchanged, and then the old one's files go.
    """
    tell = progress or (lambda stage, done, total: None)
    shards = absolute_path(shards)
    if has_manifest(shards) and not overwrite:
        raise DataError(
            f"{shards}: holds a prepared data set already; choose another folder for data.shards "
            "or ask for overwriting"
        )
    check_shards_folder(shards)
    listed = read_source(absolute_path(source), settings)
    if named and any(named.values()):
        known = source_concepts(listed)
        for key, asked in named.items():
            check_concepts(key, asked, known)
    with _begun(shards) as own, scratch_folder(shards, _ASIDE) as aside:
        found = _inspect_all(listed, aside, settings, tell, cpus_per_task)
        rows = listed.rows
        drop_duplicates(rows, found)
        bad = quarantine(listed, settings)
        bucket_of = {index: inspected.bucket for index, inspected in found.items()}
        samples = [
            (index, rows[index].sample_id, bucket, rows[index].concept or "")
            for index, bucket in bucket_of.items()
        ]
        layout = lay_out(samples, settings)
        generation = free_generation(own, [shard.file for shard in layout])
        layout = [replace(shard, file=shard_generation(shard.file, generation)) for shard in layout]
        own.claim(*(shard.file for shard in layout))
        digests = _write_all(shards, layout, rows, tell, cpus_per_task)
        old = listed_files(shards)
        sizes = dict(storage.list_files(shards))
        files = {shard.file: sizes[shard.file] for shard in layout}
        manifest = _manifest(name or source, settings, listed, found, layout, digests, bad)
        manifest = manifest.model_copy(update={"files": files})
        save_manifest(shards, manifest)
        remove_shards(own, old - files.keys())
    return manifest


def load_prepared(shards: str, data: DataSection) -> Manifest:
    """The manifest of ``shards``, made sure to hold what ``data`` asks for.

    Raises DataError naming the key and both values when it was prepared otherwise.
    """
    manifest = load_manifest(shards)
    check_shards(shards, manifest)
    for key in ("pixel_area", "bucket_multiple"):
        prepared, asked = getattr(manifest.settings, key), getattr(prepare_settings(data, 0), key)
        if prepared != asked:
            raise DataError(
                f"data.{key}: {asked}, but {shards} was prepared with {prepared}; "
                "set it to that, or prepare into another folder"
            )
    return manifest


@contextmanager
def _begun(shards: str) -> Iterator[OwnedFolder]:
    """The folder while data is being prepared into it; after a failure it is as it was before."""
    existed = storage.exists(shards)
    own = owned(shards)
    clear_unlisted(own)
    try:
        own.claim(MANIFEST)
        yield own
    except BaseException:
        with suppress(Exception):  # what went wrong first is what is told
            clear_unlisted(own)
            if not has_manifest(shards):
                own.remove([MANIFEST])
            if not existed:
                storage.remove_if_empty(shards)
        raise


def _inspect_all(
    listed: Source, aside: str, settings: PrepareSettings, tell: Progress, cpus: float
) -> dict[int, Inspected]:
    """Position in ``listed.rows`` -> what is known of the usable samples.

    The others get their ``problem`` written in; samples of tables are appended.
    """
    rows = listed.rows
    inspector = Inspector.of(settings)
    total = len(rows) + sum(group.rows for group in listed.groups)
    usable: dict[int, Inspected] = {}
    todo = [
        {"at": index, "row": pack_row(row)} for index, row in enumerate(rows) if row.problem is None
    ]
    done = len(rows) - len(todo)
    for batch in _map(todo, _inspect_batch, ROWS_PER_TASK, cpus, inspector=inspector):
        for result in batch.to_pylist():
            inspected = Inspected.unpack(result["inspected"])
            row = rows[result["at"]]
            if inspected.reason:
                row.problem = inspected.reason
            else:
                row.captions = json.loads(result["captions"])
                usable[result["at"]] = inspected
        done += batch.num_rows
        tell("checking images", done, total)
    groups = [
        {
            "at": index,
            "group": json.dumps(asdict(group)),
            "aside": storage.join(aside, f"{index:06}"),
        }
        for index, group in enumerate(listed.groups)
    ]
    unpacked: dict[int, list[tuple[SourceRow, Inspected]]] = {}
    for batch in _map(groups, _unpack_batch, 1, cpus, inspector=inspector):
        for result in batch.to_pylist():
            sample = (unpack_row(result["row"]), Inspected.unpack(result["inspected"]))
            unpacked.setdefault(result["at"], []).append(sample)
            done += sample[0].samples
        tell("checking images", done, total)
    for _, samples in sorted(unpacked.items()):
        for row, inspected in samples:
            if row.problem is None:
                usable[len(rows)] = inspected
            rows.append(row)
    return dict(sorted(usable.items()))


def _inspect_batch(batch: pa.Table, inspector: Inspector) -> pa.Table:
    results = []
    for item in batch.to_pylist():
        row = unpack_row(item["row"])
        found = inspector.inspect(row).pack()
        captions = json.dumps(row.captions)
        results.append({"at": item["at"], "inspected": found, "captions": captions})
    return pa.Table.from_pylist(results)


def _unpack_batch(batch: pa.Table, inspector: Inspector) -> pa.Table:
    (item,) = batch.to_pylist()
    samples = inspector.unpack(Group(**json.loads(item["group"])), item["aside"])
    return pa.Table.from_pylist(
        [
            {"at": item["at"], "row": pack_row(row), "inspected": found.pack()}
            for row, found in samples
        ]
    )


def _write_all(
    shards: str, layout: list[Shard], rows: list[SourceRow], tell: Progress, cpus: float
) -> dict[str, str]:
    """Write every shard; returns sample_id -> digest."""
    todo = []
    for shard in layout:
        groups = [
            [bucket, [pack_row(rows[index]) for index in indices]]
            for bucket, indices in shard.groups
        ]
        todo.append({"path": storage.join(shards, shard.file), "groups": json.dumps(groups)})
    digests: dict[str, str] = {}
    total = sum(len(indices) for shard in layout for _, indices in shard.groups)
    for batch in _map(todo, _write_batch, 1, cpus):
        digests.update((item["sample_id"], item["digest"]) for item in batch.to_pylist())
        tell("writing shards", len(digests), total)
    return digests


def _write_batch(batch: pa.Table) -> pa.Table:
    (item,) = batch.to_pylist()
    groups = [
        (bucket, [unpack_row(row) for row in packed])
        for bucket, packed in json.loads(item["groups"])
    ]
    digests = write_shard(item["path"], groups)
    return pa.table({"sample_id": list(digests), "digest": list(digests.values())})


def _map(
    items: list[dict[str, Any]],
    function: Callable[..., pa.Table],
    size: int,
    cpus: float,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """Tables that ``function`` makes of ``items``, ``size`` at a time, in whatever order."""
    arguments["function"] = function
    return map_items(items, _shipped, size, "prepare", num_cpus=cpus, fn_kwargs=arguments)


def _shipped(batch: pa.Table, function: Callable[..., pa.Table], **arguments: Any) -> pa.Table:
    with shipping_errors():
        return function(batch, **arguments)


def _manifest(
    source: str,
    settings: PrepareSettings,
    listed: Source,
    usable: dict[int, Inspected],
    layout: list[Shard],
    digests: dict[str, str],
    bad: tuple[Quarantined, ...],
) -> Manifest:
    samples = [(listed.rows[index], found) for index, found in usable.items()]
    good = [row for row, _ in samples]
    sets = Counter(tuple(sorted(row.captions)) for row in good)
    concepts = dict(sorted(Counter(row.concept or "" for row in good).items()))
    members: dict[str, list[str]] = {}
    for row in sorted(good, key=lambda row: row.sample_id):
        members.setdefault(row.concept or "", []).append(digests[row.sample_id])
    return Manifest(
        source=source,
        settings=settings,
        seen=sum(row.samples for row in listed.rows),
        samples=len(good),
        buckets=dict(sorted(Counter(found.bucket for found in usable.values()).items())),
        concepts=concepts,
        repeats={name: n for name, n in listed.repeats.items() if name in concepts},
        caption_sets=tuple(CaptionSet(keys=k, samples=n) for k, n in sorted(sets.items())),
        references=dict(sorted(Counter(str(len(row.references)) for row in good).items())),
        masks=sum(row.mask is not None for row in good),
        without_picture=_without_picture(good),
        concept_fingerprints={name: _fingerprint(own) for name, own in sorted(members.items())},
        fingerprint=_fingerprint([digests[key] for key in sorted(digests)]),
        row_groups=tuple(
            RowGroup(
                file=shard.file,
                row_group=number,
                bucket=bucket,
                rows=len(indices),
                concepts=_runs(listed.rows[index].concept or "" for index in indices),
            )
            for shard in layout
            for number, (bucket, indices) in enumerate(shard.groups)
        ),
        quarantined=bad,
        notes=(*listed.notes, *findings(samples, settings)),
    )


def _without_picture(rows: Iterable[SourceRow]) -> dict[str, Texts]:
    by_concept: dict[str, list[str]] = {}
    for row in rows:
        if row.image is None:
            by_concept.setdefault(row.concept or "", []).append(row.where)
    return {
        name: Texts(samples=len(where), first=where[0])
        for name, where in sorted(by_concept.items())
    }


def _fingerprint(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _runs(concepts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple((concept, len(list(run))) for concept, run in groupby(concepts))
