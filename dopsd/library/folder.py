"""The folder of a library: where everything of a concept lies, and the cards that say what is done.

``card.json`` is written last. One that can be read, whose fingerprint is that of the concept as it
would be trained now and whose adapter is there, IS the concept's being done; nothing else is. A
contact sheet that is lost costs no training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from dopsd.config import RunConfig, dump_config, stored_config
from dopsd.errors import ConfigError, DataError
from dopsd.files import storage
from dopsd.files.seal import sealed, unsealed
from dopsd.library.catalogue.catalogue import Concept
from dopsd.library.catalogue.names import digest, folder_of
from dopsd.library.report.card import Card, Count
from dopsd.ownership.ownership import FileDigest, OwnedFolder, digest_of
from dopsd.readers import Object, checked, read_json

CONFIG, CATALOGUE, LEDGER = "library.yaml", "catalog.parquet", "ledger.jsonl"
INDEX, PAGE, PAGES = "index.parquet", "index.html", "pages/"
CONCEPTS, STATE = "concepts/", "state/"
LORA, TEACHER, CARD = "lora.safetensors", "teacher_lora.safetensors", "card.json"
SHEET = "sheet.webp"
_RESUME = "resume.json"
_SIDE_BY_SIDE = 16
"""Cards that are read at a time."""

_INDEX = pa.schema(
    [
        ("concept", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("folder", pa.string()),
        ("pictures", pa.int64()),
        ("captions", pa.int64()),
        ("planned_steps", pa.int64()),
        ("steps", pa.int64()),
        ("stopped", pa.string()),
        ("attempts", pa.int64()),
        ("seconds", pa.float64()),
        ("first_loss", pa.float64()),
        ("last_loss", pa.float64()),
        ("metric", pa.string()),
        ("base_distance", pa.float64()),
        ("student_distance", pa.float64()),
        ("base_drawn", pa.float64()),
        ("drawn", pa.float64()),
        ("sharpness_ratio", pa.float64()),
        ("no_sheet", pa.string()),
        ("thumbnail", pa.binary()),
        ("fingerprint", pa.string()),
        ("adapter_sha256", pa.string()),
    ]
)
"""``status``: done, in flight, waiting, skipped or parked; ``attempts``: failed ones included.
Distances, ratio and thumbnail (WebP) are those of the concept's contact sheet: see card.py."""


class Resume(BaseModel):
    """Where a concept in flight goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concept: str
    fingerprint: str
    step: Count
    losses: list[tuple[Count, float]]
    """(step, loss) of what was trained."""
    files: dict[str, FileDigest]


class LibraryFolder:
    """A library's folder, local or on S3. Who writes has claimed it (lease.py)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._own = OwnedFolder(path, "library", "run.folder")

    def file(self, *names: str) -> str:
        return storage.join(self.path, *names)

    def check(self) -> None:
        """Raises ConfigError for a folder that holds anything but a library."""
        self._own.check(CONFIG, CATALOGUE, LEDGER, INDEX, CONCEPTS, STATE)

    def begin(
        self, config: RunConfig, concepts: Iterable[Concept], prints: Mapping[str, str]
    ) -> None:
        """Write the config and the catalogue. Raises ConfigError as :meth:`check`."""
        self._own.claim(CONFIG, CATALOGUE, LEDGER, CONCEPTS, STATE)
        self._own.write(CONFIG, dump_config(config).encode())
        self._own.write(CATALOGUE, _parquet(_table(concepts, prints)))

    def write_index(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write what became of each concept; it can always be made again (status.py)."""
        self._own.write(INDEX, _parquet(pa.Table.from_pylist(list(rows), schema=_INDEX)))

    def write_page(self, files: Mapping[str, bytes]) -> None:
        """Write the files of the page (page.py) in the place of those of an earlier one. Raises
        ConfigError where something of somebody else, or one of ours that was changed, is there."""
        before = [name for name in self._own.entries() if name.startswith(PAGES)]
        self._own.check(*files, *before)
        self._own.write_all(files)
        self._own.remove(set(before) - files.keys())

    def config(self) -> RunConfig:
        """The config with which the library was started last. Raises ConfigError where none is."""
        if not storage.exists(self.file(CONFIG)):
            raise ConfigError(f"{self.path}: holds no library (it has no {CONFIG})")
        return stored_config(self.file(CONFIG))

    def catalogue(self) -> list[dict[str, Any]]:
        """What is known of each concept of the last start, skipped ones too: see ``_table``."""
        with storage.open_input(self.file(CATALOGUE)) as source:
            rows: list[dict[str, Any]] = pq.read_table(source).to_pylist()
        return rows

    def concept(self, name: str) -> str:
        """The folder of a concept."""
        return self.file(CONCEPTS, folder_of(name))

    def keep(self, card: Card, files: Mapping[str, bytes]) -> None:
        """Write what a concept leaves, its card last. Of an older adapter the card goes first."""
        folder = self.concept(card.concept)
        for old in (CARD, *({TEACHER, SHEET} - files.keys())):
            storage.remove(storage.join(folder, old))
        for name, payload in files.items():
            storage.write_bytes(storage.join(folder, name), payload, durable=True)
        payload = sealed(card.model_dump(mode="json"))
        storage.write_bytes(storage.join(folder, CARD), payload, durable=True)

    def card(self, name: str) -> Card | None:
        """The card of a concept whose files are there; None without one, or for a damaged one."""
        return self._card(name, dict(storage.list_files(self.concept(name))))

    def cards(self, names: Iterable[str]) -> dict[str, Card]:
        """Those of ``names`` that have one."""
        held: dict[str, dict[str, int]] = {}
        for path, size in storage.list_files(self.file(CONCEPTS)):  # one question for all of them
            folder, _, file = path.rpartition("/")
            held.setdefault(folder, {})[file] = size
        some = [(name, held[folder_of(name)]) for name in names if folder_of(name) in held]
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as readers:
            found = readers.map(lambda one: self._card(*one), some)
        return {card.concept: card for card in found if card is not None}

    def _card(self, name: str, sizes: Mapping[str, int]) -> Card | None:
        """``sizes``: bytes of the files in its folder."""
        if CARD not in sizes:
            return None
        path = storage.join(self.concept(name), CARD)
        try:
            card = checked(unsealed(read_json(path, Object)), path, Card, DataError)
        except (DataError, ValueError, FileNotFoundError):
            return None
        needed = {file: written for file, written in card.files.items() if file != SHEET}
        whole = all(sizes.get(file) == written.bytes for file, written in needed.items())
        return card if whole and card.concept == name else None

    def save_state(
        self, name: str, print_: str, step: int, losses: list, files: Mapping[str, bytes]
    ) -> None:
        """Keep where a concept in flight stands, in place of what was kept before."""
        folder = self._state(name)
        before = self._resume(name)
        stems = {file: f"{step:08d}-{file}" for file in files}
        for file, payload in files.items():
            storage.write_bytes(storage.join(folder, stems[file]), payload)
        resume = Resume(
            concept=name,
            fingerprint=print_,
            step=step,
            losses=losses,
            files={stems[file]: digest_of([payload]) for file, payload in files.items()},
        )
        storage.write_bytes(storage.join(folder, _RESUME), sealed(resume.model_dump(mode="json")))
        for file in (before.files if before else {}).keys() - resume.files.keys():
            storage.remove(storage.join(folder, file))

    def load_state(self, name: str, print_: str) -> tuple[Resume, dict[str, bytes]] | None:
        """(where a concept goes on, its learner's files); None where it begins anew."""
        resume = self._resume(name)
        if resume is None or resume.fingerprint != print_ or resume.concept != name:
            return None
        files = {}
        for file, written in resume.files.items():
            try:
                payload = storage.read_bytes(storage.join(self._state(name), file))
            except FileNotFoundError:
                return None
            if digest_of([payload]) != written:
                return None
            files[file.partition("-")[2]] = payload
        return resume, files

    def drop_state(self, name: str) -> None:
        """A concept is in flight no more."""
        folder = self._state(name)
        for file in sorted(storage.names(folder)):
            storage.remove(storage.join(folder, file))
        storage.remove_if_empty(folder)

    def drop_other_states(self, names: Iterable[str]) -> None:
        """Nothing but ``names`` is in flight: what others left, whose command died before it could
        clear up, goes."""
        known = {digest(name) for name in names}
        for path, _ in storage.list_files(self.file(STATE)):
            if path.partition("/")[0] not in known:
                storage.remove(self.file(STATE, path))
                storage.remove_if_empty(self.file(STATE, path.rpartition("/")[0]))

    def _state(self, name: str) -> str:
        return self.file(STATE, digest(name))

    def _resume(self, name: str) -> Resume | None:
        path = storage.join(self._state(name), _RESUME)
        try:
            return checked(unsealed(read_json(path, Object)), path, Resume, DataError)
        except (DataError, ValueError, FileNotFoundError):
            return None


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def _table(concepts: Iterable[Concept], prints: Mapping[str, str]) -> pa.Table:
    rows = [
        {
            "concept": concept.name,
            "folder": CONCEPTS + folder_of(concept.name),
            "pictures": concept.pictures,
            "captions": concept.captions,
            "steps": concept.steps,
            "skipped": concept.skip,
            "fingerprint": prints.get(concept.name, ""),
        }
        for concept in concepts
    ]
    return pa.Table.from_pylist(rows)
