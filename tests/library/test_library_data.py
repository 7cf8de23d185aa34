"""Data that a library cannot encode, or would preserve nothing of, is refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dopsd.config import RunConfig
from dopsd.data.manifest import save_manifest
from dopsd.errors import DataError
from dopsd.library.run import library_data
from tests.data.samples import SMALL, write_shards
from tests.helpers.tiny import make_config

PAIRS = {"name": "enhanced_prompt", "prompt_pairs": [["short", "detailed"]]}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    save_manifest(folder := str(tmp_path / "shards"), write_shards(Path(folder), {"rex": "ptp"}))
    return folder


def config(shards: str, data: dict[str, Any], **sections: Any) -> RunConfig:
    return make_config("base", data={"source": None, "shards": shards, **SMALL, **data}, **sections)


def test_texts_alone_where_the_teacher_sees_pictures(shards: str) -> None:
    with pytest.raises(DataError, match=r"rows:rex1: has no picture \(1 of 3.*context.name: vlm"):
        library_data(config(shards, {}), lambda _: None)
    library_data(config(shards, {}, context=PAIRS), lambda _: None)


@pytest.mark.parametrize(
    ("class_word", "token", "line"),
    [
        ({"rax": "dog"}, "[V]", r"class_word: 'rax' is no concept of the data.*mean 'rex'"),
        ("dog", "sks", r"given, but no caption of concept '[a-z]+'.* holds 'sks' as a word"),
        ({"rex": "dog"}, "[V]", None),
    ],
)
def test_class_words_that_preserve_nothing(
    shards: str, class_word: Any, token: str, line: str | None
) -> None:
    words = {"token": token, "preservation": {"class_word": class_word}}
    run = config(shards, words, context=PAIRS)
    if line is None:
        assert library_data(run, lambda _: None).samples == 3
        return
    with pytest.raises(DataError, match=line):
        library_data(run, lambda _: None)
