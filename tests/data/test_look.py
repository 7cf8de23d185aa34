"""`dopsd data look`: a source as it lies, as text and as a page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dopsd.cli.main import main
from dopsd.config import load_config
from dopsd.data.look import PICTURES, look
from dopsd.data.manifest import PrepareSettings
from dopsd.report.look import render
from tests.data.samples import SMALL, picture, png, write_folder

SETTINGS = PrepareSettings(**SMALL)


def told(source: Path) -> tuple[str, str]:
    """(text, page) of a look."""
    found = look(str(source), SETTINGS, lambda stage, done, total: None)
    return "\n".join(found.lines()), render(found)


def test_a_folder_is_told_and_shown(tmp_path: Path) -> None:
    write_folder(tmp_path / "set/cat", 6)
    write_folder(tmp_path / "set/dog", 3, ((80, 56),))
    (tmp_path / "set/cat/000.png").write_bytes(b"")
    (tmp_path / "set/cat/001.txt").write_text("<b>a [V] cat</b>")
    text, page = told(tmp_path / "set")
    assert "8 of 9 samples can be used" in text
    assert "concepts: cat (5), dog (3)" in text
    assert "32x32 ████████████████████████ 5" in text and "40x28 ██████████████ 3" in text
    assert "1 x zero bytes, e.g. cat/000.png" in text
    assert "7 of 8 captions lack [V]" in text and "7 of 8 captions lack [V]" in page
    assert page.count("<img") == 8 and "&lt;b&gt;a [V] cat&lt;/b&gt;" in page
    assert "cat/000.png</td><td>zero bytes" in page


def test_the_rows_of_a_table_are_looked_at(tmp_path: Path) -> None:
    table = pa.table({"image": [png(picture(n)) for n in range(5)] + [b"x"], "text": ["[V]"] * 6})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    text, page = told(tmp_path / "set.parquet")
    assert "5 of 6 samples can be used" in text and "set.parquet:2:1: broken image" in text
    assert page.count("<img") == 5


def test_a_sheet_has_a_bound_and_shows_from_everywhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", 2 * PICTURES + 1)
    found = look(str(tmp_path / "set"), SETTINGS, lambda stage, done, total: None)
    assert len(found.pictures) == PICTURES
    assert {found.pictures[0].where, found.pictures[-1].where} == {"000.png", "118.png"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page = write_folder(tmp_path / "[V] set", 2), tmp_path / "look.html"
    command = ["data", "look", str(source), "data.pixel_area=1024", "--page", str(page)]
    assert main(command) == 0 == main(command)  # a page of its own may be written anew
    assert "2 of 2 samples can be used" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    page.write_text("mine")
    assert main(command) == 1 and page.read_text() == "mine"
    assert "no page of dopsd's" in capsys.readouterr().err
    assert main(["data", "look", str(source), "learner.lr=1"]) == 1
    assert "learner.lr: no key of the section data" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["data", "look", str(tmp_path / "empty"), "--page", ""]) == 1
    assert "no samples in it" in capsys.readouterr().err


def test_a_program_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "set/cat", 2)
    (source / "000.png").write_bytes(b"")
    arguments = ["data", "look", str(tmp_path / "set"), "data.pixel_area=1024", "--json"]
    assert main(arguments) == 0 and not Path("data-look.html").exists()
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["usable"], found["concepts"]) == (2, 1, {"cat": 1})
    assert found["quarantined"][0]["reason"] == "zero bytes"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.source=other", "data.source: given beside SOURCE, which decides it; allowed: one"),
        ("data={source: other}", "data.source: given beside SOURCE"),
        (
            "data.shards=x",
            "data.shards: not read by this command, allowed: data.KEY=VALUE with KEY",
        ),
        ("data.balance=concepts", "data.balance: not read by this command"),
        ("data.pixel_aera=4", "data.pixel_aera: unknown key (did you mean pixel_area?)"),
        ("nonsense", "override 'nonsense': allowed: section.key=value"),
    ],
)
@pytest.mark.parametrize("command", [["data", "look"], ["caption"]], ids=" ".join)
def test_what_would_be_ignored_is_refused(
    command: list[str], override: str, said: str, tmp_path: Path, capsys
) -> None:
    source = write_folder(tmp_path / "set", 1)
    assert main([*command, str(source), override]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dopsd: {said}"), line
    assert main(["caption", str(source), "data.pixel_area=64"]) == 1, "which looks at no bucket"
    assert "data.pixel_area: not read by this command" in capsys.readouterr().err


def test_the_next_command_takes_any_name(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "a: b", 1)
    assert main(["data", "look", "a: b", "data.pixel_area=1024", "--page", ""]) == 0
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: dopsd train CONFIG ")
    first, *_ = shlex.split(last)
    assert load_config("shapes", [first]).data.source == "a: b"
