"""Every file of JSON that is read: whatever is wrong with it is one line with its path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dopsd.contexts.vlm_weights import _tensors
from dopsd.data.context_cache.files import RECORD, load_record
from dopsd.data.manifest import MANIFEST, load_manifest
from dopsd.errors import DataError, DopsdError
from dopsd.evaluation.prompts import read_prompts
from dopsd.experiments.reproduce import table
from dopsd.learner.zero.engine import read_preset
from dopsd.models import FAMILIES
from dopsd.models.transformer_folder import CONFIG, INDEX, transformer_files
from dopsd.readers import Object, json_value, parse_json, read_json
from dopsd.report.page import render
from dopsd.report.run_files import read_run_files
from dopsd.report.stats import read_run
from dopsd.run_folder.jsonl import read_lines, read_with_damage

NASTY = {
    "empty": b"",
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"steps": 3, "sec',
    "NULs": b"\0" * 64,
    "nested too deeply": b"[" * 100_000,
    "thousands of digits": b'{"steps": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2]",
    "a text": b'"' + b"x" * 100_000 + b'"',
    "nothing": b"null",
    "a key twice": b'{"a": 1, "a": 2}',
    "half a surrogate": b'{"_class_name": "\\ud800"}',
    "other fields": b'{"format": [], "folder": {}, "\\u001b[31m": 1, "weight_map": 3}',
}


def write_run(folder: Path, name: str, payload: bytes) -> None:
    (folder / "config.yaml").write_text("data: {source: x}\n")
    summary = {"steps": 1, "seconds": 1, "seconds_to_first_step": 1}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    for extra in ("preview", "preflight"):
        (folder / extra).mkdir(exist_ok=True)
    (folder / "preflight/contact_sheet.png").write_bytes(b"")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(payload)


def of_run(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, payload: bytes) -> object:
        write_run(folder, name, payload)
        return render(read_run_files(str(folder)))

    return read


def of_file(name: str, read: Callable[[str], object]) -> Callable[[Path, bytes], object]:
    def reads(folder: Path, payload: bytes) -> object:
        (folder / name).write_bytes(payload)
        return read(str(folder / name))

    return reads


def of_folder(name: str, read: Callable[[str], object]) -> Callable[[Path, bytes], object]:
    def reads(folder: Path, payload: bytes) -> object:
        (folder / name).write_bytes(payload)
        return read(str(folder))

    return reads


def weights_by_index(folder: Path, payload: bytes) -> object:
    (folder / CONFIG).write_text('{"_class_name": "Kind"}')
    (folder / INDEX).write_bytes(payload)
    return transformer_files(str(folder), "Kind")


def stats(folder: Path, payload: bytes) -> object:
    write_run(folder, "summary.json", payload)
    return read_run(str(folder))


READERS: dict[str, Callable[[Path, bytes], object]] = {
    "manifest.json": of_folder(MANIFEST, load_manifest),
    "encoded.json": of_folder(RECORD, load_record),
    "model_index.json": of_folder("model_index.json", lambda base: FAMILIES["z_image"](base)),
    "a transformer's config.json": of_folder(CONFIG, lambda path: transformer_files(path, "Kind")),
    "an index of weights": weights_by_index,
    "the index of a text encoder": of_folder(
        "model.safetensors.index.json", lambda folder: list(_tensors(Path(folder)))
    ),
    "DeepSpeed": of_file("zero.json", read_preset),
    "table.json": of_file("table.json", table.read),
    "prompts.jsonl": of_file("prompts.jsonl", read_prompts),
    "summary.json of stats": stats,
    "summary.json": of_run("summary.json"),
    "preview/history.json": of_run("preview/history.json"),
    "preflight/report.json": of_run("preflight/report.json"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NASTY)
def test_what_is_wrong_is_one_line_with_the_path(reader: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(DopsdError) as caught:
        READERS[reader](tmp_path, NASTY[kind])
    line = str(caught.value)
    assert str(tmp_path) in line and len(line) < 700 and line.isprintable(), line


@pytest.mark.parametrize("kind", NASTY)
def test_a_broken_line_of_a_record_costs_that_line(kind: str, tmp_path: Path) -> None:
    payload = b'{"step": 0}\n' + NASTY[kind] + b'\n{"step": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(payload)
    path = str(tmp_path / "metrics.jsonl")
    if kind in ("half a surrogate", "other fields"):
        assert len(read_lines(path)) == 3
        return
    assert read_lines(path) == [{"step": 0}, {"step": 1}]
    told = read_with_damage(path, lambda entry: True).told()
    assert not told or (told.startswith("metrics.jsonl line 2 (") and len(told) < 100)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "large.json").write_bytes(b" " * 2000)
    for name, why in (
        ("none.json", "no such file"),
        ("folder.json", "cannot be read: not a regular file, allowed: a file"),
        ("pipe.json", "cannot be read: not a regular file, allowed: a file"),
        ("large.json", "2000 bytes, allowed: 1000"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "a NUL character"),
    ):
        with pytest.raises(DataError, match=why):
            read_json(str(tmp_path / name), Object, most=1000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1,\n "b" 2}', "not JSON: Expecting ':' delimiter at line 2, column 6"),
        ("", "empty, allowed: JSON"),
        ('{"a": 1, "a": 2}', "not JSON: key 'a' is there twice, allowed: once"),
        ("9" * 5000, "not JSON: Exceeds the limit"),
        ("[" * 100_000, "not JSON: nested too deeply"),
    ],
)
def test_the_place_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        json_value(text)
    assert str(caught.value).startswith(why)


def test_a_wrong_value_is_neither_repeated_whole_nor_with_its_secret() -> None:
    values = json.dumps({"n": "x" * 100_000}), json.dumps({"n": "https://me:PLANTED@host/x"})
    for text in values:
        with pytest.raises(DataError, match=r"^file: n: found '.*, allowed: ") as caught:
            parse_json(text, "file", dict[str, int])
        assert len(str(caught.value)) < 300 and "PLANTED" not in str(caught.value)


def test_an_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    for name in ("../x.safetensors", "/x.safetensors", "a\\x.safetensors", "x.bin"):
        with pytest.raises(DopsdError, match=r"weight_map\.w: found '"):
            weights_by_index(tmp_path, json.dumps({"weight_map": {"w": name}}).encode())
