"""Where the base's own samples are kept: complete or absent, whoever draws them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.config import load_config
from dopsd.data.manifest import MANIFEST
from dopsd.driver.drawing.prior import check_prior, placed_beside
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder


def draw(folder: str, who: str) -> None:
    storage.write_bytes(storage.join(folder, "pictures", "0.png"), who.encode())
    storage.write_bytes(storage.join(folder, MANIFEST), who.encode())


@pytest.fixture(params=["local", "s3"])
def shards(request, tmp_path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/shards/prior-1"
    return str(tmp_path / "shards" / "prior-1")


def files(shards: str) -> dict[str, bytes]:
    """Everything beside the shards, by path."""
    parent = shards.rpartition("/")[0]
    names = [name for name, _ in storage.list_files(parent)]
    return {name: storage.read_bytes(storage.join(parent, name)) for name in names}


def test_samples_are_there_when_all_of_them_are_drawn(shards):
    with placed_beside(shards) as aside:
        draw(aside, "me")
        assert not storage.exists(storage.join(shards, MANIFEST))
    assert files(shards) == {f"prior-1/{name}": b"me" for name in ("pictures/0.png", MANIFEST)}


def test_whoever_is_second_uses_what_is_there(shards):
    with placed_beside(shards) as first, placed_beside(shards) as second:
        assert first != second
        draw(first, "first")
        draw(second, "second")
    assert files(shards) == {f"prior-1/{name}": b"second" for name in ("pictures/0.png", MANIFEST)}


def test_what_was_begun_leaves_nothing(shards):
    with pytest.raises(KeyboardInterrupt), placed_beside(shards) as aside:
        draw(aside, "me")
        raise KeyboardInterrupt
    assert files(shards) == {}


def test_what_another_process_left_half_moved_is_replaced_and_no_file_of_others(shards):
    OwnedFolder(shards, "shards", "x").claim("pictures/0.png")
    storage.write_bytes(storage.join(shards, "pictures", "0.png"), b"half")
    with placed_beside(shards) as aside:
        draw(aside, "me")
    assert files(shards) == {f"prior-1/{name}": b"me" for name in ("pictures/0.png", MANIFEST)}


def test_a_folder_of_somebody_else_in_their_place_is_refused(shards):
    storage.write_bytes(storage.join(shards, "pictures", "0.png"), b"mine")
    with (
        pytest.raises(ConfigError, match=r"^data\.shards: .* did not make: pictures; "),
        placed_beside(shards),
    ):
        pytest.fail("drawn although it cannot be kept")
    assert files(shards) == {"prior-1/pictures/0.png": b"mine"}


@pytest.mark.parametrize(("field", "value"), [("seeds", [1, 2]), ("references", ["a.png"])])
def test_prompts_that_ask_for_more_than_a_text_are_refused(tmp_path: Path, field, value):
    path = tmp_path / "prior.jsonl"
    path.write_text(json.dumps({"prompt": "a cat"}) + "\n")
    config = load_config("configs/shapes.yaml", [f"data.prior.prompts={path}"])
    check_prior(config)
    path.write_text(json.dumps({"prompt": "a cat", field: value}) + "\n")
    line = rf"^data\.prior\.prompts: {path}: 'a cat' has {field}, allowed: none"
    with pytest.raises(ConfigError, match=line):
        check_prior(config)


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "shards").touch()  # as read-only as a folder is to anybody but root
    with (
        pytest.raises(
            ConfigError, match=r"^data\.shards: .*prior-1 cannot be made, .*shards is no folder; "
        ),
        placed_beside(str(tmp_path / "shards" / "prior-1")),
    ):
        pytest.fail("drawn although it cannot be kept")
