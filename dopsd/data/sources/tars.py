"""WebDataset tars as a source: files of one name but for the suffix are one sample.

A member of a tar stands in it as it is, so that a picture is a range of the tar's bytes and
nothing is unpacked.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field

from dopsd.data.schema import MASK
from dopsd.data.sources.caption_files import MAX_JSON_BYTES, captions_of_bytes
from dopsd.data.sources.fields import MAX_CAPTION_BYTES, check_captions, check_name, printable
from dopsd.data.sources.image_files import SUFFIXES as IMAGES
from dopsd.data.sources.rows import ByteRange, Source, SourceRow
from dopsd.data.sources.settings import ReadSettings
from dopsd.errors import DopsdError, message_line
from dopsd.files import storage
from dopsd.shown import line

SUFFIX = ".tar"
_REFERENCE = re.compile(r"ref(\d+)")


@dataclass
class _Member:
    """The files of one sample by what follows its name, in small letters."""

    pictures: dict[str, ByteRange] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    too_long: str | None = None
    others: list[str] = field(default_factory=list)


def list_tars(files: list[tuple[str, str]], settings: ReadSettings) -> Source:
    """Samples of ``files`` (name, path); ``sample_id`` is TAR/NAME without their suffixes.

    Pictures ``NAME.png``, captions ``NAME.txt``, ``.caption`` or ``.json`` as beside the pictures
    of a folder, more captions under keys of their own as ``NAME.KEY.txt``, references as
    ``NAME.ref1.png``, the mask as ``NAME.mask.png``. A tar that breaks off gives what stands before
    and a problem row.
    """
    source = Source([])
    notes: Counter[str] = Counter()
    for name, path in files:
        try:
            check_name("file name", name)
        except ValueError as error:
            source.rows.append(SourceRow(line(printable(name)), "", problem=str(error)))
            continue
        members, problem = _members(path)
        for key, member in members.items():
            source.rows.append(_row(name, key, member, settings, notes))
        if problem is None and not members:
            problem = "empty: no samples in it"
        if problem is not None:
            source.rows.append(SourceRow(name, "", problem=problem))
    source.notes = [f"{note} in {count} samples of tars" for note, count in sorted(notes.items())]
    return source


def _members(path: str) -> tuple[dict[str, _Member], str | None]:
    """(samples by name, what is wrong with the tar)."""
    members: dict[str, _Member] = {}
    try:
        with (
            storage.open_binary(path) as file,
            tarfile.TarFile(fileobj=file) as tar,  # of no compressed one: it is never unpacked
        ):
            for entry in tar:
                folder, base = posixpath.split(entry.name)
                if not entry.isreg() or entry.issparse() or base.startswith("."):
                    continue
                stem, _, ending = base.partition(".")
                key = posixpath.join(folder, stem).removeprefix("./")
                member = members.setdefault(key, _Member())
                ending = ending.lower()
                if f".{ending.rpartition('.')[2]}" in IMAGES:
                    end = entry.offset_data + entry.size
                    member.pictures[ending] = ByteRange(path, entry.offset_data, end)
                elif ending.rpartition(".")[2] in ("txt", "caption", "json"):
                    most = MAX_JSON_BYTES if ending.endswith("json") else MAX_CAPTION_BYTES
                    if entry.size > most:
                        member.too_long = f"caption too long: {entry.size} bytes, allowed: {most}"
                        continue
                    content = tar.extractfile(entry)
                    member.texts[ending] = content.read() if content else b""
                else:
                    member.others.append(ending)
    except DopsdError:
        raise
    except Exception as error:  # tarfile raises many kinds on broken files
        return members, f"broken tar: {printable(message_line(error))}"
    return members, None


def _row(
    name: str, key: str, member: _Member, settings: ReadSettings, notes: Counter[str]
) -> SourceRow:
    row = SourceRow(f"{name}:{key}", f"{posixpath.splitext(name)[0]}/{key}")
    try:
        check_name("file name", key)
        masks = [end for end in member.pictures if end.split(".")[0] == MASK]
        if len(masks) == 1 or not settings.masks:  # else it is told that there are several
            for end in masks:
                row.mask = member.pictures.pop(end)
        row.image, row.references = _pictures(member)
        row.captions = _captions(member, settings, notes)
        check_captions(row.captions)
        notes.update(f".{ending} is unknown: left aside" for ending in member.others)
    except ValueError as error:
        row.where, row.sample_id = line(printable(row.where)), printable(row.sample_id)
        row.problem, row.captions, row.image, row.references = str(error), {}, None, []
        row.mask = None
    return row


def _pictures(member: _Member) -> tuple[ByteRange, list[ByteRange]]:
    targets, references = [], []
    for ending, part in member.pictures.items():
        match = _REFERENCE.fullmatch(ending.split(".")[0])
        if match:
            references.append((int(match[1]), part))
        else:
            targets.append((ending, part))
    if len(targets) != 1:
        found = ", ".join(f".{ending}" for ending, _ in targets)
        if not found and (others := [*member.texts, *member.others]):
            found = f"none beside {', '.join(f'.{ending}' for ending in others)}"
        raise ValueError(f"missing image: {found or 'none'}, allowed: one picture of a name")
    return targets[0][1], [part for _, part in sorted(references, key=lambda one: one[0])]


def _captions(member: _Member, settings: ReadSettings, notes: Counter[str]) -> dict[str, str]:
    if member.too_long:
        raise ValueError(member.too_long)
    captions: dict[str, str] = {}
    for ending, data in member.texts.items():
        key, _, kind = ending.rpartition(".")
        if key:
            captions |= captions_of_bytes(data, f".{kind}", settings, key)[0]
    for kind in settings.caption_files:
        if kind in member.texts:
            found, several = captions_of_bytes(member.texts[kind], f".{kind}", settings)
            captions |= found
            if several and settings.caption_lines == "paragraph":
                notes["several lines are one caption (data.caption_lines)"] += 1
            break
    if not captions:
        kinds = ", ".join(f".{kind}" for kind in settings.caption_files)
        raise ValueError("empty caption" if member.texts else f"missing caption: none of {kinds}")
    return captions
