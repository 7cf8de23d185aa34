"""The manifest: what makes a folder of shards a data set.

It is written last, so that a folder without one is not a data set, and it tells everything the
plan and the start-up checks need without opening a shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from dopsd import shown
from dopsd.data.schema import FORMAT, SCHEMA_VERSION, without_generation
from dopsd.data.sources.settings import ReadSettings
from dopsd.errors import DataError, message_line
from dopsd.files import storage
from dopsd.files.seal import SEAL, sealed, unsealed
from dopsd.readers import Object, checked, read_json

MANIFEST = "manifest.json"
MOST_BYTES = 2**32
"""Of a manifest: it grows with the row groups and the quarantined samples."""

Positive = Annotated[int, Field(ge=1)]


class RowRef(NamedTuple):
    """One sample: row ``row`` of a row group of a file."""

    file: str
    row_group: int
    row: int


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrepareSettings(ReadSettings):
    """What decides the content of the shards; field names as in the ``data`` config section."""

    pixel_area: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 1024 * 1024
    bucket_multiple: Positive = 16
    rows_per_group: Positive = 32
    groups_per_shard: Positive = 16
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_side: Annotated[int, Field(ge=0)] = 0
    max_enlarge: Annotated[float, Field(gt=0)] = 4.0
    token: str = "[V]"
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def areas(self) -> tuple[int, ...]:
        """Every area of ``pixel_area``."""
        return (self.pixel_area,) if isinstance(self.pixel_area, int) else self.pixel_area


class RowGroup(_Record):
    """One row group of one file: the unit of streaming, shuffling and resuming."""

    file: str
    row_group: int
    bucket: str
    rows: int
    concepts: tuple[tuple[str, int], ...]
    """(concept, number of rows) as they follow one another."""

    def ref(self, row: int) -> RowRef:
        """Where a row of it is."""
        return RowRef(self.file, self.row_group, row)

    @property
    def identity(self) -> dict[str, Any]:
        """What a plan depends on: data that is prepared again is the same data."""
        return self.model_dump() | {"file": without_generation(self.file)}


class Quarantined(_Record):
    """A sample that is not in the shards, and why.

    ``where``: file, file:line, or file:row group:row.
    """

    where: str
    sample_id: str
    reason: str
    samples: int = 1
    """More than one where a part of a parquet file cannot be read."""
    concept: str = ""


class Texts(_Record):
    """Samples of one concept that have no picture, and where the first of them lies."""

    samples: int
    first: str


class CaptionSet(_Record):
    """How many samples carry exactly these caption keys."""

    keys: tuple[str, ...]
    samples: int


class Manifest(_Record):
    """Everything that is known of a prepared data set without opening a shard."""

    format: Literal["dopsd-shards"] = FORMAT
    schema_version: int = SCHEMA_VERSION
    source: str
    settings: PrepareSettings
    seen: int
    """Samples found in the source: ``samples`` plus the quarantined ones."""
    samples: int
    buckets: dict[str, int]
    """Samples of each bucket "WxH"."""
    concepts: dict[str, int]
    """Samples of each concept; "" counts those without one."""
    repeats: dict[str, int] = {}
    """Times per epoch that each sample of a concept comes, where the source says so."""
    concept_fingerprints: dict[str, str] = {}
    """Of the samples of each concept, as ``fingerprint`` is of all. None in an older manifest."""
    caption_sets: tuple[CaptionSet, ...]
    references: dict[str, int]
    """Samples by how many reference pictures they have."""
    masks: int = 0
    """Samples that have one."""
    without_picture: dict[str, Texts] = {}
    """By concept, of the concepts that have samples without a picture."""
    fingerprint: str
    """sha256 over ids, concepts, captions, prepared pixels, reference pictures and masks, in the
    order of the ids."""
    row_groups: tuple[RowGroup, ...]
    files: dict[str, Positive] = {}
    """Bytes of each shard."""
    quarantined: tuple[Quarantined, ...]
    notes: tuple[str, ...]
    """What was left aside without losing a sample, e.g. unknown JSONL fields."""

    @property
    def caption_keys(self) -> dict[str, int]:
        """Samples that carry each caption key."""
        counts: dict[str, int] = {}
        for group in self.caption_sets:
            for key in group.keys:
                counts[key] = counts.get(key, 0) + group.samples
        return counts

    @property
    def without_references(self) -> int:
        """Samples that have no reference picture."""
        return self.references.get("0", 0)

    def summary_lines(self) -> list[str]:
        """The outcome of preparing, for the user: counts, then each kind of quarantine."""
        lines = [
            f"{self.samples} samples in {len(self.row_groups)} row groups; buckets: "
            + ", ".join(f"{bucket} ({count})" for bucket, count in self.buckets.items()),
            "captions: " + ", ".join(f"{k} ({n})" for k, n in sorted(self.caption_keys.items())),
        ]
        if self.concepts.keys() - {""}:
            named = ((name or "(none)", count) for name, count in self.concepts.items())
            lines.append("concepts: " + ", ".join(f"{name} ({count})" for name, count in named))
        if self.without_references < self.samples:
            counts = ", ".join(f"{number} ({n})" for number, n in self.references.items())
            lines.append(f"reference pictures of a sample: {counts}")
        if texts := sum(own.samples for own in self.without_picture.values()):
            size = self.settings.drawn_size
            lines.append(
                f"without a picture: {texts} of {self.samples} samples, drawn as pictures of "
                f"{size} are (data.drawn_size)"
            )
        if self.masks:
            lines.append(f"masks: {self.masks} of {self.samples} samples (data.masks)")
        if self.quarantined:
            lines.append(f"quarantined: {self.seen - self.samples} of {self.seen}")
            lines += quarantine_lines(self.quarantined)
        return lines + [f"note: {note}" for note in self.notes]


def quarantine_lines(entries: Sequence[Quarantined]) -> list[str]:
    """Each kind of reason with its count and its first sample."""
    kinds: Counter[str] = Counter()
    for entry in entries:
        kinds[entry.reason.split(":")[0]] += entry.samples
    first = {entry.reason.split(":")[0]: entry for entry in reversed(entries)}
    return [
        f"  {count} x {kind}, e.g. {first[kind].where}: {first[kind].reason}"
        for kind, count in kinds.most_common()
    ]


def save_manifest(shards: str, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``shards``: from now on the folder is a data set."""
    payload = sealed(manifest.model_dump(mode="json"))
    storage.write_bytes(storage.join(shards, MANIFEST), payload)


def has_manifest(shards: str) -> bool:
    """True when ``shards`` is a finished data set."""
    return storage.exists(storage.join(shards, MANIFEST))


def find_manifest(folder: str) -> Manifest | None:
    """The manifest of a folder that has a file of that name, or None when it is somebody else's.

    Raises DataError as :func:`load_manifest` does.
    """
    try:
        values = read_json(storage.join(folder, MANIFEST), Object, most=MOST_BYTES)
    except DataError:
        return None
    return load_manifest(folder) if values.get("format") == FORMAT else None


def load_manifest(shards: str) -> Manifest:
    """Read the manifest of ``shards``.

    Raises DataError when there is none, when it is not dopsd's, or when a newer dopsd wrote it.
    """
    path = storage.join(shards, MANIFEST)
    try:
        there = has_manifest(shards)
    except Exception as error:  # s3fs and botocore raise many kinds
        raise DataError(f"{path}: cannot be read: {message_line(error)}") from error
    if not there:
        raise DataError(
            f"{shards}: no {MANIFEST}, so this is no prepared data set; run `dopsd prepare`"
        )
    values = read_json(path, Object, most=MOST_BYTES)
    if values.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of dopsd shards (its format is not {FORMAT!r})")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {shown.value(version)}, this dopsd reads {SCHEMA_VERSION}; "
            "use the dopsd that wrote it, or prepare the data again"
        )
    plain = {key: value for key, value in values.items() if key != SEAL}
    manifest = checked(plain, path, Manifest, DataError)
    try:
        unsealed(values)
    except ValueError as error:
        raise DataError(f"{path}: {error}; prepare the data again") from None
    return manifest


def check_shards(shards: str, manifest: Manifest) -> None:
    """Raises DataError for the first shard that is missing or has another size."""
    sizes = dict(storage.list_files(shards))
    for name in sorted({group.file for group in manifest.row_groups}):
        if (size := sizes.get(name)) != (expected := manifest.files.get(name)):
            actual = "missing" if size is None else f"{size} bytes"
            raise DataError(
                f"{storage.join(shards, name)}: {actual}, {MANIFEST} says {expected or 0} bytes; "
                "prepare the data again"
            )
