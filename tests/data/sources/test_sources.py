from __future__ import annotations

from pathlib import Path

import pytest

from dopsd.data.sources.read import read_source
from dopsd.errors import DataError
from tests.data.samples import picture, write_folder, write_jsonl


def test_folder_lists_images_with_captions_and_concepts(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    write_folder(tmp_path / "dog" / "deep", 1)
    write_folder(tmp_path / ".hidden", 1)
    (tmp_path / "notes.md").write_text("left aside")
    found = read_source(str(tmp_path))
    assert [(row.sample_id, row.concept, row.problem) for row in found.rows] == [
        ("000", None, None),
        ("001", None, None),
        ("dog/deep/000", "dog", None),
    ]
    assert found.notes == ["neither pictures, captions nor lists, left aside: 1 .md"]


def test_folder_names_missing_captions_and_missing_images(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.PNG")
    (tmp_path / "b.txt").write_text("no picture")
    problems = {row.where: row.problem for row in read_source(str(tmp_path)).rows}
    assert problems == {
        "a.PNG": "missing caption: no a.txt or .caption or .json",
        "b.txt": "missing image: no picture beside b.txt",
    }


def test_jsonl_takes_captions_in_every_form(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "set.jsonl",
        [
            {"image": "a/1.png", "captions": {"short": " a dog ", "zh": "狗"}, "concept": "dog"},
            {"image": "a/2.png", "captions": "a cat"},
            {"image": "s3://elsewhere/3.png", "caption": "a cow", "id": 7},
            "",
            {"image": "/abs/4.jpg", "text": "a hen", "captions": {"long": "a hen", "zh": None}},
        ],
    )
    rows = read_source(str(path)).rows
    assert [row.sample_id for row in rows] == ["a/1", "a/2", "7", "/abs/4"]
    assert [row.captions for row in rows] == [
        {"short": "a dog", "zh": "狗"},
        {"caption": "a cat"},
        {"caption": "a cow"},
        {"caption": "a hen", "long": "a hen"},
    ]
    assert [row.concept for row in rows] == ["dog", None, None, None]
    assert [row.image and row.image.path for row in rows] == [
        f"{tmp_path}/a/1.png",
        f"{tmp_path}/a/2.png",
        "s3://elsewhere/3.png",
        "/abs/4.jpg",
    ]
    assert rows[3].where == "set.jsonl:5"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{oops", "not JSON: Expecting property name"),
        ("[1, 2]", "found list, allowed: an object"),
        ({"caption": "x"}, "missing image: no field 'image'"),
        ({"image": 3, "caption": "x"}, "image: 3, allowed: a path"),
        ({"image": "a.png"}, "missing caption"),
        ({"image": "a.png", "captions": {"short": "  "}}, "empty caption"),
        ({"image": "a.png", "captions": {"short": 4}}, "caption 'short': 4, allowed: a text"),
        ({"image": "a.png", "captions": ["x"]}, "caption 'caption': ['x'], allowed: a text"),
        ({"image": "a.png", "caption": "x", "id": 1.5}, "id: 1.5, allowed: a text or an integer"),
        ({"image": "a.png", "caption": "x", "concept": 2}, "concept: 2, allowed: a text"),
    ],
)
def test_jsonl_names_line_and_reason(tmp_path: Path, row: dict | str, problem: str) -> None:
    good = {"image": "good.png", "caption": "fine"}
    found = read_source(str(write_jsonl(tmp_path / "set.jsonl", [good, row])))
    assert found.rows[0].problem is None
    assert found.rows[1].where == "set.jsonl:2"
    assert (found.rows[1].problem or "").startswith(problem)


def test_jsonl_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "a.png", "text": "a"}\n"\xff"\n')
    rows = read_source(str(tmp_path / "set.jsonl")).rows
    assert rows[0].problem is None
    assert (rows[1].problem or "").startswith("not UTF-8 (invalid start byte at byte 1); likely")


def test_jsonl_notes_unknown_fields_and_empty_captions_beside_good_ones(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "captions": {"short": "x", "long": ""}, "width": 3}] * 2
    found = read_source(str(write_jsonl(tmp_path / "set.jsonl", rows)))
    assert found.rows[0].captions == {"short": "x"}
    assert found.notes == [
        "caption 'long' is empty in 2 rows: left out there",
        "field 'width' is unknown: left aside in 2 rows",
    ]


def test_sources_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "file.dat").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("nothing", "no such folder, .jsonl, .csv, .tsv, .parquet, .arrow or .tar file"),
        ("nothing.jsonl", "no such file"),
        ("file.dat", "not a folder, .jsonl, .csv, .tsv, .parquet, .arrow or .tar file"),
        ("empty", "no samples in it"),
    ]:
        with pytest.raises(DataError, match=f"data.source: .*{name}: {message}"):
            read_source(str(tmp_path / name))
    with pytest.raises(DataError, match="protocol 'gs'"):
        read_source("gs://bucket/folder")
