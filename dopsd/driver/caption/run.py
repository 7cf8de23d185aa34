"""`dopsd caption`: what has no caption under a key gets one, line by line, by a pool of actors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dopsd.config import Device
from dopsd.data.manifest import quarantine_lines
from dopsd.data.pictures.images import BadImage
from dopsd.data.prepare.outcome import quarantined
from dopsd.data.prepare.shards import fetch_image
from dopsd.data.sources import lists
from dopsd.data.sources.fields import check_name
from dopsd.data.sources.rows import SourceRow
from dopsd.data.sources.settings import ReadSettings
from dopsd.driver.caption.lines import (
    SUFFIX,
    check_claim,
    check_list,
    entry_of,
    key_of,
    refuse_another_source,
)
from dopsd.driver.caption.pictures import list_pictures, read_captions
from dopsd.driver.caption.questions import question_for
from dopsd.driver.caption.writer import WHO, CaptionWriter, Written
from dopsd.errors import ConfigError, DataError
from dopsd.evaluation.metrics.judge import Judge
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.models.pretrained import check_config
from dopsd.ownership.lease import claimed
from dopsd.ray_cluster.connect import cluster_resources, connect, nodes
from dopsd.ray_cluster.job_pool import Job, JobPool
from dopsd.ray_cluster.placement import Role, uses_gpus, wait_for_resources
from dopsd.run_folder.jsonl import JsonLines

DEFAULT_VLM = Judge.default_model
Tell = Callable[[str], None]
_START_SECONDS, _ANSWER_SECONDS, _PLACE_SECONDS = 900.0, 300.0, 120.0


@dataclass(frozen=True)
class Asked:
    """What a user asks for; ``out`` None: a list named after the source and the key."""

    source: str
    key: str
    settings: ReadSettings
    vlm: str = DEFAULT_VLM
    question: str | None = None
    subject: str | None = None
    out: str | None = None
    workers: int = 1
    device: Device = "auto"

    @property
    def file(self) -> str:
        name = os.path.basename(self.source.rstrip("/"))
        stem = os.path.splitext(name)[0] if name.endswith(lists.SUFFIXES) else name
        return self.out or f"{stem}-{self.key.replace('/', '_')}{SUFFIX}"


@dataclass(frozen=True)
class Captioned:
    """What was done."""

    file: str
    written: int
    listed: int
    keys: tuple[str, ...]
    """Caption keys of the list, the most usual first."""
    repeats: dict[str, int]
    """What the source's folder names say and no list can."""
    left_out: list[str]
    """As lines: pictures that could not be read or got no caption, and notes."""


def caption(asked: Asked, tell: Tell, say: Tell, take_over: bool = False) -> Captioned:
    """Write a caption ``asked.key`` of every picture that has none, and list them all.

    Called again it goes on where it stopped. Raises ConfigError, DataError or MissingWeights in one
    line before anything is loaded, and as ``JobPool`` does.
    """
    if not asked.key.strip():
        raise ConfigError("--key: '', allowed: a name, such as short, medium or detailed")
    try:
        check_name("--key", asked.key)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    question = question_for(asked.key, asked.question, asked.subject)
    listed = list_pictures(asked.source, asked.settings)
    check_config(WHO, asked.vlm)
    by = f"{asked.vlm} {fingerprint([model_identity(asked.vlm), question])}"
    check_list(asked.file, asked.source, asked.key, by)
    # The claim is a folder beside the list, which goes away with it: the list's own is a user's.
    claim = f"{asked.file}.writing"
    check_claim(claim, asked.file)
    with claimed(claim, "--out", take_over=take_over, tell=say) as lease:
        known = check_list(asked.file, asked.source, asked.key, by)
        if asked.out is None:
            there = [row for row in listed.rows if row.image is not None]
            keys = {key_of(entry_of(row, {}, asked.file, by)) for row in there}
            refuse_another_source(asked.file, asked.source, known, keys)
        lines = JsonLines(asked.file)

        def append(entry: dict[str, Any]) -> None:
            lease.check()
            lines.append(entry)

        for row in listed.rows:
            read_captions(row, asked.settings)
        usable = [row for row in listed.rows if row.problem is None]
        todo = [row for row in usable if key_of(entry_of(row, {}, asked.file, by)) not in known]
        try:
            for row in (row for row in todo if asked.key in row.captions):
                append(entry_of(row, row.captions, asked.file, None))
            wanted = [row for row in todo if asked.key not in row.captions]
            written = _write(asked, question, wanted, by, append, tell) if wanted else 0
        finally:
            lines.flush()
        entries = check_list(asked.file, asked.source, asked.key, by).values()
    left_out = quarantine_lines(quarantined(listed.rows))
    if not entries:
        raise DataError(f"SOURCE: {asked.source}: no picture got a caption; {left_out[0].strip()}")
    counts = Counter(key for entry in entries for key in entry["captions"])
    return Captioned(
        asked.file,
        written,
        len(entries),
        tuple(key for key, _ in counts.most_common()),
        listed.repeats,
        [*left_out, *(f"  note: {note}" for note in listed.notes)],
    )


def _write(
    asked: Asked,
    question: str,
    rows: list[SourceRow],
    by: str,
    append: Callable[[dict[str, Any]], None],
    tell: Tell,
) -> int:
    """Returns how many captions were written; a row without gets its ``problem``."""
    gpus = 1.0 if uses_gpus(asked.device, connect().get("GPU", 0.0)) else 0.0
    role = Role("caption writer", min(asked.workers, len(rows)), 1.0, gpus)
    wait_for_resources([role], cluster_resources, _PLACE_SECONDS, nodes)
    written = 0
    of: dict[Job, SourceRow] = {}

    def jobs() -> Iterator[Job]:
        # One by one as writers come free: a picture is read only then.
        for row in rows:
            assert row.image is not None, "listed as usable"
            try:
                picture = fetch_image(row.image)
            except BadImage as error:
                row.problem = str(error)
                continue
            job = Job(f"the caption of {row.where}", "write", (picture,))
            of[job] = row
            yield job

    def keep(job: Job, answer: Written) -> None:
        nonlocal written
        row = of.pop(job)
        if answer.problem:
            row.problem = answer.problem
        else:
            captions = {**row.captions, asked.key: answer.text}
            append(entry_of(row, captions, asked.file, by))
            written += 1
        tell(f"{written} of {len(rows)} written")

    tell(f"0 of {len(rows)} written")
    with JobPool(
        CaptionWriter,
        (asked.vlm, asked.key, question, role.device),
        role,
        start_s=_START_SECONDS,
        step_s=_ANSWER_SECONDS,
        restarts=role.workers,
    ) as pool:
        pool.run(jobs(), keep)
    return written
