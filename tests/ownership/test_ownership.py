"""What a record makes ours, and what stays whoever asks for its removal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.ownership import RECORD, OwnedFolder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/f"
    return str(tmp_path / "f")


def own(folder: str) -> OwnedFolder:
    return OwnedFolder(folder, "run", "run.folder")


def put(folder: str, name: str, payload: bytes = b"mine") -> None:
    storage.write_bytes(storage.join(folder, name), payload)


def files(folder: str) -> list[str]:
    return [name for name, _ in storage.list_files(folder)]


def test_a_folder_that_is_not_empty_and_not_ours_is_refused_by_what_it_holds(folder: str) -> None:
    for name in ("a.txt", "b/1.txt", "c", "d", "e"):
        put(folder, name)
    line = (
        rf"^run\.folder: {folder} holds 5 things that dopsd did not make: a\.txt, b, c and 2 more; "
        "allowed: an empty folder, one that does not exist yet, or another folder$"
    )
    for act in (own(folder).check, own(folder).claim):
        with pytest.raises(ConfigError, match=line):
            act("free.txt")
    assert not storage.exists(storage.join(folder, RECORD))


def test_what_is_written_is_ours_and_what_lies_beside_it_is_not(folder: str) -> None:
    mine = own(folder)
    mine.claim("sub/")
    mine.write_all({"a.txt": b"1", "sub/b.txt": b"2"})
    put(folder, "notes.txt")
    put(folder, "sub/notes.txt")
    put(folder, "later.txt")
    mine.write("a.txt", b"written again")
    with pytest.raises(ConfigError, match=r"holds 1 thing that dopsd did not make: later\.txt; "):
        mine.claim("later.txt")
    assert mine.remove(["a.txt", "sub/", "sub/b.txt", "later.txt"]) == ["later.txt"]
    assert files(folder) == [*([RECORD] if "sub/" in mine.entries() else []), "later.txt",
                             "notes.txt", "sub/notes.txt"]  # fmt: skip


def test_a_finished_file_that_was_replaced_is_refused_and_stays(folder: str) -> None:
    mine = own(folder)
    mine.write_all({"lora.safetensors": b"ours", "page.html": b"page"})
    put(folder, "lora.safetensors", b"mine")  # of the same size
    with pytest.raises(ConfigError, match=r"/lora\.safetensors not as dopsd left it; "):
        mine.check("lora.safetensors", "page.html")
    assert mine.remove(["lora.safetensors", "page.html"]) == ["lora.safetensors"]
    assert storage.read_bytes(storage.join(folder, "lora.safetensors")) == b"mine"
    with pytest.raises(ConfigError, match=r"did not make: lora\.safetensors; "):
        mine.claim("lora.safetensors")


def test_another_kind_and_a_damaged_record_are_refused_in_one_line(folder: str) -> None:
    own(folder).claim("a")
    with pytest.raises(ConfigError, match=r"^data\.shards: .* dopsd made as 'run'; allowed: "):
        OwnedFolder(folder, "shards", "data.shards").check("b")
    put(folder, RECORD, b"\0\0\0")
    with pytest.raises(ConfigError, match=r"\.dopsd\.json is no record of dopsd, or a damaged one"):
        own(folder).claim("b")


def test_nothing_claimed_leaves_nothing_behind(folder: str) -> None:
    mine = own(folder)
    mine.claim("a")
    assert mine.remove(["a"]) == [] and files(folder) == []


def test_links_stay_links_and_are_written_through(tmp_path: Path) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "run"
    scratch.mkdir()
    folder.mkdir()
    (folder / "checkpoints").symlink_to(scratch)
    mine = own(str(folder))
    mine.claim("checkpoints/")
    mine.write("checkpoints/a.bin", b"1")
    (scratch / "mine.bin").write_bytes(b"2")
    assert mine.remove(["checkpoints/", "checkpoints/a.bin"]) == []
    assert (folder / "checkpoints").is_symlink() and os.listdir(scratch) == ["mine.bin"]
    # A link in the place of a file of ours is not followed, and not taken away.
    mine.write("page.html", b"2")
    (folder / "page.html").unlink()
    (folder / "page.html").symlink_to(scratch / "mine.bin")
    assert mine.replaced(["page.html"]) == ["page.html"] and mine.remove(["page.html"]) == [
        "page.html"
    ]
    assert (folder / "page.html").is_symlink() and (scratch / "mine.bin").read_bytes() == b"2"


def test_a_link_to_a_folder_of_others_is_no_place_for_ours(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "step-000001").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    with pytest.raises(ConfigError, match="did not make: checkpoints; "):
        own(str(tmp_path / "run")).claim("checkpoints/")


def test_what_a_dead_writer_left_half_written_goes_with_its_file(tmp_path: Path) -> None:
    mine = own(str(tmp_path))
    mine.claim("a.bin", "sub/")
    for name in ("a.bin.tmp-7-0123abcd", "sub/b.bin.tmp-7-0123abcd", "b.bin.tmp-7-0123abcd"):
        put(str(tmp_path), name)
    mine.remove(mine.entries())
    assert files(str(tmp_path)) == ["b.bin.tmp-7-0123abcd"], "nothing of ours has that name"
