"""Folders as other programs and people leave them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dopsd.config import parse_config
from dopsd.data.pictures.images import decode_image
from dopsd.data.prepare.shards import fetch_image
from dopsd.errors import ConfigError, DataError
from tests.data.samples import picture, png
from tests.data.sources.layouts import look, pictures


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


# -- captions beside pictures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".caption", "a [V] thing"),
        (".TXT", "a [V] thing"),
        (".png.txt", "a [V] thing"),
        (".json", json.dumps({"caption": "a [V] thing", "tags": "thing, red", "seed": 3})),
        (".json", json.dumps({"tags": ["a [V]", "thing"]})),
        (".json", json.dumps("a [V] thing")),
    ],
)
def test_captions_in_every_kind_of_file(tmp_path: Path, suffix: str, content: str) -> None:
    (path,) = pictures(tmp_path, 1)
    (tmp_path / f"{path.stem}{suffix}").write_text(content)
    (caption,) = look(tmp_path).captions["0"].values()
    assert caption.replace(",", "") == "a [V] thing"


def test_several_kinds_side_by_side_have_an_order(tmp_path: Path) -> None:
    for number, path in enumerate(pictures(tmp_path, 4)):
        path.with_suffix((".txt", ".caption")[number % 2]).write_text("one")
    (tmp_path / "0.caption").write_text("other")
    seen = look(tmp_path)
    assert len(seen.samples) == 4 and seen.captions["0"] == {"caption": "one"}
    assert seen.told(".txt before .caption before .json")
    assert look(tmp_path, caption_files=("caption", "txt")).captions["0"] == {"caption": "other"}


def test_the_file_that_was_seen_is_named(tmp_path: Path) -> None:
    for number, suffix in enumerate((".md", ".json", ".npz")):
        (path,) = pictures(tmp_path / f"{number}", 1)
        path.with_suffix(suffix).write_text("{}")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.psd").write_bytes(b"8BPS")
    (tmp_path / "README.txt").write_text("no caption of anything")
    problems = look(tmp_path, caption_files=("txt",)).problems
    assert problems == {
        "0/0.png": "missing caption: no 0/0.txt; 0/0.md is there, which is no caption",
        "1/0.png": "missing caption: no 1/0.txt; 1/0.json is there (data.caption_files=[json] reads"
        " it)",
        "2/0.png": "missing caption: no 2/0.txt; 2/0.npz is there, which is no caption",
        "a.txt": "missing image: no picture beside a.txt; a.psd is there, which is not read",
    }


def test_a_json_without_a_caption_says_what_it_has(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "0.json").write_text(json.dumps({"author": "me", "licence": "CC"}))
    reason = look(tmp_path).problems["0.png"]
    assert "its .json has 'author', 'licence'" in reason
    assert look(tmp_path, columns={"caption": "author"}).captions == {"0": {"caption": "me"}}


def test_lines_are_a_paragraph_or_captions(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "0.txt").write_bytes(b"\xef\xbb\xbfa [V]\tthing \r\n\r\n  on grass\r\n")
    seen = look(tmp_path)
    assert seen.captions == {"0": {"caption": "a [V] thing on grass"}}
    assert seen.told("1 caption file with several lines: each line is part of one caption")
    seen = look(tmp_path, caption_lines="captions")
    assert seen.captions == {"0": {"caption": "a [V] thing", "caption_2": "on grass"}}
    assert seen.told("each line is a caption of its own")


ENCODINGS = [
    ("cp1252", "a [V] café – “red”", "Windows-1252"),
    ("latin-1", "a [V] tête-à-tête", "Windows-1252"),
    ("cp1251", "фото [V] кота на диване", "Windows-1251"),
    ("shift_jis", "[V]の猫の写真です", "Shift-JIS"),
    ("euc_kr", "[V] 고양이 사진 입니다", "CP949"),
    ("gb18030", "一张关于[V]猫的照片", "GB18030"),
    ("utf-16", "été [V]", "UTF-16"),
    ("utf-16-be", "a [V] thing é", "UTF-16"),
    ("utf-16-le", "a [V] thing", "UTF-16"),
]


@pytest.mark.parametrize(("encoding", "text", "name"), ENCODINGS)
def test_encodings_are_named_and_read(tmp_path: Path, encoding: str, text: str, name: str) -> None:
    for path in pictures(tmp_path, 2):
        path.with_suffix(".txt").write_bytes(text.encode(encoding))
    (tmp_path / "1.txt").write_text("schön, in UTF-8", encoding="utf-8")
    reason = look(tmp_path).problems["0.png"]
    assert f"likely {name}" in reason
    key = reason.rpartition("data.caption_encoding=")[2]
    assert look(tmp_path, caption_encoding=key).captions["0"] == {"caption": text}
    seen = look(tmp_path, caption_encoding=encoding)
    assert seen.captions == {"0": {"caption": text}, "1": {"caption": "schön, in UTF-8"}}


@pytest.mark.parametrize("name", ["nonsense", "rot13", "hex", ""])
def test_an_encoding_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.caption_encoding: "):
        parse_config("", "", [f"data.caption_encoding={name}"])


# -- names of folders ----------------------------------------------------------------------------


def caption_all(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text("a thing")


def test_kohyas_folders_give_concept_and_repeats(tmp_path: Path) -> None:
    for name in ("10_sks animal", "3_ohwx man", "plain"):
        pictures(tmp_path / name, 2)
    caption_all(tmp_path)
    seen = look(tmp_path)
    assert seen.repeats == {"sks animal": 10, "ohwx man": 3}
    assert {row.concept for row in seen.samples.values()} == {"sks animal", "ohwx man", "plain"}
    assert seen.told("'10_sks animal': concept 'sks animal', 10 times per epoch")
    off = look(tmp_path, folder_repeats=False)
    assert not off.repeats
    assert {row.concept for row in off.samples.values()} == {"10_sks animal", "3_ohwx man", "plain"}


def test_names_that_only_look_like_kohyas(tmp_path: Path) -> None:
    for name in ("2023_summer", "01_first", "10_a", "20_a"):
        pictures(tmp_path / name, 1)
    caption_all(tmp_path)
    seen = look(tmp_path)
    assert {row.concept for row in seen.samples.values()} == {
        "2023_summer",
        "01_first",
        "10_a",
        "20_a",
    }
    assert seen.repeats == {"10_a": 10, "20_a": 20}


def test_the_folder_itself_may_be_kohyas(tmp_path: Path) -> None:
    pictures(tmp_path / "5_cat", 1)
    caption_all(tmp_path)
    assert look(tmp_path / "5_cat").told(f"data.source={tmp_path}")


def test_splits_are_no_concepts(tmp_path: Path) -> None:
    for name in ("train/cat", "test/cat", "train"):
        pictures(tmp_path / name, 1)
    caption_all(tmp_path)
    seen = look(tmp_path)
    assert {name: row.concept for name, row in seen.samples.items()} == {
        "train/cat/0": "cat",
        "test/cat/0": "cat",
        "train/0": None,
    }
    assert seen.told("'test' (1), 'train' (2)")


# -- links ---------------------------------------------------------------------------------------


def test_links_are_followed_when_they_are_to_be(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere/cat", 2)
    caption_all(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    (source / "cat").symlink_to(tmp_path / "elsewhere/cat", target_is_directory=True)
    (source / "circle").symlink_to(source, target_is_directory=True)
    with pytest.raises(DataError, match=r"no samples in it; cat: a link .*data\.follow_links=true"):
        look(source)
    seen = look(source, follow_links=True)
    assert set(seen.samples) == {"cat/0", "cat/1"}
    assert {row.concept for row in seen.samples.values()} == {"cat"}
    for name in ("0.png", "0.txt"):
        (source / name).symlink_to(tmp_path / "elsewhere/cat" / name)
    assert "data.follow_links=true" in look(source).problems["0.png"]
    assert "0" in look(source, follow_links=True).samples


def test_a_link_to_what_the_source_holds_adds_nothing(tmp_path: Path) -> None:
    pictures(tmp_path / "dog", 2)
    caption_all(tmp_path)
    (tmp_path / "hound").symlink_to(tmp_path / "dog", target_is_directory=True)
    seen = look(tmp_path, follow_links=True)
    assert set(seen.samples) == {"dog/0", "dog/1"}


# -- tars and Arrow ------------------------------------------------------------------------------


def test_a_webdataset(tmp_path: Path) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(3):
            files |= {
                f"{number:05}.png": png(picture(number)),
                f"{number:05}.txt": f"a [V] thing {number}\n".encode(),
                f"{number:05}.json": b'{"caption": "of the json", "width": 32}',
                f"{number:05}.cls": b"3",
            }
        write_tar(tmp_path / f"things-{shard:06}.tar", files)
    for source, count in ((tmp_path, 6), (tmp_path / "things-000001.tar", 3)):
        seen = look(source)
        assert not seen.problems and len(seen.samples) == count
        row = seen.samples["things-000001/00002"]
        assert row.captions == {"caption": "a [V] thing 2"} and row.image is not None
        assert np.array_equal(decode_image(fetch_image(row.image)), picture(2))
        assert seen.told(f".cls is unknown: left aside in {count} samples of tars")


def test_a_webdataset_with_references_keys_and_bad_samples(tmp_path: Path) -> None:
    image = png(picture(0))
    files = {
        "a.jpg": image,
        "a.ref2.png": png(picture(2)),
        "a.ref1.png": png(picture(1)),
        "a.short.txt": b"short",
        "a.long.txt": b"long",
        "two.input.png": image,
        "two.png": image,
        "two.txt": b"x",
        "mute.png": image,
        "alone.txt": b"x",
        "heavy.png": image,
        "heavy.txt": b"x" * 100_000,
        "../up.png": image,
        "../up.txt": b"x",
        "._a.png": b"a Mac's",
    }
    write_tar(tmp_path / "set.tar", files)
    seen = look(tmp_path / "set.tar")
    assert seen.captions == {
        "set/a": {"short": "short", "long": "long"},
        "set/../up": {"caption": "x"},
    }
    pictures_of = [fetch_image(part) for part in seen.samples["set/a"].references]
    assert pictures_of == [png(picture(1)), png(picture(2))]
    assert {where: reason[:40] for where, reason in seen.problems.items()} == {
        "set.tar:two": "missing image: .input.png, .png, allowed",
        "set.tar:mute": "missing caption: none of .txt, .caption,",
        "set.tar:alone": "missing image: none beside .txt, allowed",
        "set.tar:heavy": "caption too long: 100000 bytes, allowed:",
    }


def test_a_tar_that_breaks_off_or_is_none(tmp_path: Path) -> None:
    files = {
        f"{n}.{kind}": png(picture(n)) if kind == "png" else b"x"
        for n in range(3)
        for kind in ("png", "txt")
    }
    write_tar(tmp_path / "whole.tar", files)
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 3])
    (tmp_path / "none.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "nil.tar").write_bytes(b"")
    (tmp_path / "whole.tar.gz").write_bytes(b"\x1f\x8b")
    seen = look(tmp_path)
    assert {"whole/0", "whole/1", "whole/2"} <= set(seen.samples)
    assert seen.problems["none.tar"].startswith("broken tar")
    assert seen.problems["nil.tar"].startswith(("broken tar", "empty"))
    assert any(where.startswith("cut.tar") for where in seen.problems)
    assert seen.told("whole.tar.gz: compressed, unpack it")
    with pytest.raises(DataError, match=r"not a folder, .*unpack it first"):
        look(tmp_path / "whole.tar.gz")


def write_saved(folder: Path, rows: int = 5, batch: int = 2, stale: bool = True) -> None:
    """What `datasets.save_to_disk` leaves, written by pyarrow."""
    folder.mkdir(parents=True)
    image = pa.array([{"bytes": png(picture(n)), "path": None} for n in range(rows)])
    table = pa.table({"picture": image, "text": [f"a [V] {n}" for n in range(rows)]})
    names = ["data-00000-of-00001.arrow", *(["data-00000-of-00002.arrow"] if stale else [])]
    for name in names:
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=batch)
    state = {"_data_files": [{"filename": names[0]}], "_fingerprint": "x"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_what_save_to_disk_leaves(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved")
    seen = look(tmp_path / "saved")
    assert not seen.problems and len(seen.samples) == 5
    assert sorted(text["caption"] for text in seen.captions.values())[4] == "a [V] 4"
    assert seen.told("image is read from 'picture'")
    assert seen.told("1 .arrow files that state.json does not name: left aside")
    row = seen.samples["data-00000-of-00001/2/0"]
    assert row.image is not None
    assert np.array_equal(decode_image(fetch_image(row.image)), picture(4))


def test_a_saved_dictionary_of_splits_and_a_broken_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_saved(tmp_path / f"saved/{split}", rows=2, stale=False)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(look(tmp_path / "saved").samples) == 4
    broken = tmp_path / "saved/test/data-00000-of-00001.arrow"
    broken.write_bytes(broken.read_bytes()[:60])
    seen = look(tmp_path / "saved")
    assert len(seen.samples) == 2
    assert seen.problems["test/data-00000-of-00001.arrow"].startswith("broken Arrow")
