"""Lists beside pictures: Hugging Face's metadata, the authors' own, and columns by other names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.sources.layouts import look, pictures

Row = dict[str, object]


def write_lines(path: Path, rows: list[Row], end: str = "\n") -> None:
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())


def test_a_field_that_comes_late_is_read(tmp_path: Path) -> None:
    """The first thousand rows tell the columns; a row beyond them may have others."""
    pictures(tmp_path)
    rows: list[Row] = [{"caption": f"text {n}"} for n in range(1200)]
    rows += [{"file_name": f"{n}.png", "caption": f"a {n}", "creator": "me"} for n in range(3)]
    write_lines(tmp_path / "list.jsonl", rows)
    seen = look(tmp_path / "list.jsonl")
    assert {name: text["caption"] for name, text in seen.captions.items()} == {
        "0": "a 0",
        "1": "a 1",
        "2": "a 2",
    }
    assert len(seen.problems) == 1200
    assert seen.told("image is read from 'file_name'")
    assert seen.told("field 'creator' is unknown: left aside in 3 rows")


@pytest.mark.parametrize("given", ["images/{}", "images\\{}", "set/images/{}", "set\\images\\{}"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_metadata_finds_its_pictures(tmp_path: Path, given: str, end: str) -> None:
    """As they stand, with Windows' backslashes, and with the folder's own name before them."""
    folder = tmp_path / "set"
    paths = pictures(folder / "images")
    rows: list[Row] = [{"file_name": given.format(p.name), "text": f"a {p.stem}"} for p in paths]
    write_lines(folder / "metadata.jsonl", rows, end)
    for source in (folder, folder / "metadata.jsonl"):
        seen = look(source)
        assert not seen.problems
        assert sorted(text["caption"] for text in seen.captions.values()) == ["a 0", "a 1", "a 2"]
    assert sorted(look(folder).samples) == ["images/0", "images/1", "images/2"]
    assert seen.told("image is read from 'file_name'")


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_metadata_as_csv(tmp_path: Path, comma: str) -> None:
    pictures(tmp_path / "train")
    lines = [
        f"file_name{comma}text",
        *(f'{n}.png{comma}"a ""thing""{comma} {n}"' for n in range(3)),
    ]
    (tmp_path / "train/metadata.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    seen = look(tmp_path)
    assert seen.captions["train/2"] == {"caption": f'a "thing"{comma.strip()} 2'}
    assert not seen.problems and len(seen.samples) == 3
    assert seen.told("parts of the data set, all of them read: 'train' (3)")
    assert {row.concept for row in seen.samples.values()} == {None}


def test_csv_whose_rows_have_too_many_cells(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,red, round\n1.png,fine\n")
    seen = look(tmp_path)
    assert seen.problems["metadata.csv:2"].startswith("3 cells, allowed: 2 as in the first line")
    assert set(seen.samples) == {"1"}


def test_a_picture_that_metadata_does_not_name(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "1.txt").write_text("its own caption")
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "0.png", "text": "listed"}])
    seen = look(tmp_path)
    assert seen.captions == {"0": {"caption": "listed"}, "1": {"caption": "its own caption"}}
    assert seen.problems == {
        "2.png": "missing caption: no 2.txt or .caption or .json, and metadata.jsonl does not name "
        "the picture"
    }


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("gone.png", "missing image: no such file 'gone.png'"),
        ("C:\\Users\\me\\set\\0.png", "a path of another machine, and 0.png lies beside the list"),
        ("/home/me/set/0.png", "image path leaves its source"),
        ("../secret.png", "image path leaves its source"),
        ("other/0.png", "'other/0.png' is not there, and 0.png lies beside the list"),
        ("https://host/0.png", "image path leaves its source"),
        ("s3://bucket/0.png", "image path leaves its source"),
    ],
)
def test_a_list_in_a_folder_names_files_of_the_folder(
    tmp_path: Path, given: str, reason: str
) -> None:
    folder = tmp_path / "pictures"
    pictures(folder, 1)
    pictures(tmp_path, 1)[0].rename(tmp_path / "secret.png")
    write_lines(folder / "metadata.jsonl", [{"file_name": given, "text": "x"}])
    assert reason in look(folder).problems["metadata.jsonl:1"]


def test_a_password_in_a_path_is_nowhere(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    row: Row = {"file_name": "https://me:PASSWORD@host/a.png", "text": "x"}
    write_lines(tmp_path / "metadata.jsonl", [row])
    for source in (tmp_path, tmp_path / "metadata.jsonl"):
        seen = look(source)
        assert "PASSWORD" not in str((seen.problems, seen.notes)) and not seen.samples


def authors(root: Path) -> Path:
    rows = []
    for path in pictures(root / "data/imgs"):
        row: Row = {"class_name": "thing", "h*w": "32*32"}
        row["local_path_list"] = ["data/imgs/0.png", f"data/imgs/{path.name}"]
        for kind in ("short", "medium", "detailed", "user"):
            row |= {f"{kind}_{language}": f"{kind} {language}" for language in ("en", "zh")}
        rows.append(row)
    write_lines(root / "data/data.jsonl", rows)
    return root


@pytest.mark.parametrize("source", ["", "data", "data/data.jsonl"])
def test_the_authors_own_list(tmp_path: Path, source: str) -> None:
    seen = look(authors(tmp_path / "repository") / source)
    assert not seen.problems and len(seen.samples) == 3
    for row in seen.samples.values():
        assert row.concept == "thing"
        assert set(row.captions) == {
            f"{kind}_{language}"
            for kind in ("short", "medium", "detailed", "user")
            for language in ("en", "zh")
        }
        assert [Path(part.path).name for part in row.references] == ["0.png"]
    assert not seen.told("is unknown")


def test_columns_are_guessed_and_told(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    rows: list[Row] = [{"img": f"{n}.png", "description": f"a {n}", "score": 3} for n in range(2)]
    write_lines(tmp_path / "list.jsonl", rows)
    seen = look(tmp_path / "list.jsonl")
    assert seen.captions == {"0": {"caption": "a 0"}, "1": {"caption": "a 1"}}
    assert seen.told("image is read from 'img'") and seen.told("caption is read from 'description'")
    assert seen.told("field 'score' is unknown: left aside in 2 rows")


def test_columns_that_are_named_are_not_guessed(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    rows: list[Row] = [{"file_name": "1.png", "img": "0.png", "text": "x", "long": "y"}]
    write_lines(tmp_path / "list.jsonl", rows)
    seen = look(tmp_path / "list.jsonl", columns={"image": "img", "caption": "long", "text": "-"})
    assert seen.captions == {"0": {"caption": "y"}}


def test_columns_that_nobody_can_guess_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "list.jsonl", [{"where": "0.png", "what": "x"}])
    assert look(tmp_path / "list.jsonl").problems == {
        "list.jsonl:1": "missing image: no field 'image'; the row has 'what', 'where' "
        "(data.columns says which is which)"
    }


def test_a_list_by_another_name_is_pointed_at(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    write_lines(tmp_path / "captions.jsonl", [{"image": "0.png", "text": "x"}])
    path = tmp_path / "captions.jsonl"
    assert (
        look(tmp_path)
        .problems["0.png"]
        .endswith(f"captions.jsonl is there (data.source={path} reads it)")
    )


@pytest.mark.parametrize(("encoding", "name"), [("cp1252", "cp1252"), ("utf-16", "utf-16")])
def test_lists_in_other_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n0.png,café\n".encode(encoding))
    assert f"data.caption_encoding={name}" in look(tmp_path).problems["metadata.csv:1"]
    assert look(tmp_path, caption_encoding=name).captions == {"0": {"caption": "café"}}
    text = '{"image": "0.png", "text": "café"}\n'
    (tmp_path / "list.jsonl").write_bytes(text.encode(encoding))
    found = look(tmp_path / "list.jsonl")
    assert f"data.caption_encoding={name}" in found.problems["list.jsonl:1"]
    found = look(tmp_path / "list.jsonl", caption_encoding=name)
    assert found.captions == {"0": {"caption": "café"}}
