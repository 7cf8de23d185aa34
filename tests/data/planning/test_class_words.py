"""The class word in the place of the token: as a whole word, of one's own concept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dopsd.data.manifest import save_manifest
from dopsd.data.planning.class_words import ClassWords, check_class_words
from dopsd.data.run_data import prepared
from dopsd.errors import ConfigError, DataError
from tests.data.samples import SMALL, write_shards
from tests.helpers.tiny import make_config

DOG = ClassWords("[V]", "dog")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of [V] on grass", "a photo of dog on grass"),
        ("[V], and [V].", "dog, and dog."),
        ("a [V] dog on grass", "a dog on grass"),
        ("a [V] Dog", "a Dog"),
        ("a [V] dogfish", "a dog dogfish"),
        ("x[V] and [V]y", "x[V] and [V]y"),
        ("一只[V]在草地上", "一只dog在草地上"),
        ("a [v] cat", "a [v] cat"),
        ("", ""),
    ],
)
def test_the_token_is_replaced_as_a_whole_word(caption: str, expected: str) -> None:
    assert DOG.caption(caption, "rex") == expected


def test_a_token_of_letters_is_no_part_of_a_word() -> None:
    words = ClassWords("sks", "cat")
    assert words.caption("sks, not sksé nor asks; sks_1; sks-like", None) == (
        "cat, not sksé nor asks; sks_1; cat-like"
    )
    assert ClassWords("sks", r"\1 g").caption("a sks", None) == r"a \1 g"


def test_each_concept_has_its_own_word_and_the_others_none() -> None:
    words = ClassWords("[V]", (("rex", "dog"), ("tom", "cat")))
    assert [words.caption("[V]", name) for name in ("rex", "tom", "eve", None)] == [
        *("dog", "cat", "[V]", "[V]")
    ]


def test_a_concept_that_this_run_leaves_out_may_have_a_word(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path / "shards", {"rex": "p", "tom": "p"})
    save_manifest(str(tmp_path / "shards"), manifest)
    words = {"rex": "dog", "tom": "cat"}
    data = {"source": None, "concepts": ["rex"], "shards": str(tmp_path / "shards"), **SMALL}
    config = make_config("base", data={**data, "preservation": {"class_word": words}})
    assert prepared(config, lambda _: None).concepts == {"rex": 1, "tom": 1}
    words = {"rex": "dog", "tim": "cat"}
    config = make_config("base", data={**data, "preservation": {"class_word": words}})
    with pytest.raises(DataError, match=r"class_word: 'tim' is no concept of the data"):
        prepared(config, lambda _: None)


DATA = SimpleNamespace(concepts={"rex": 1, "": 1})
"""Of a manifest what the check reads."""


def checked(
    captions: list[tuple[str | None, dict[str, str]]], alone: bool = False, **preservation
) -> None:
    config = make_config("base", data={"source": "unused", "preservation": preservation})
    check_class_words(config, DATA, iter(captions), alone=alone)


def test_captions_without_the_token_have_nothing_to_replace() -> None:
    with pytest.raises(DataError, match=r"no caption holds '\[V\]' as a word.*data\.token"):
        checked([("rex", {"short": "a dog"})], class_word="dog")
    with pytest.raises(DataError, match="no caption of its concepts holds"):
        checked([(None, {"short": "a [V]"})], class_word={"rex": "dog"})
    with pytest.raises(DataError, match=r"class_word: 'rax' is no concept.*did you mean 'rex'"):
        checked([(None, {"short": "a [V]"})], class_word={"rax": "dog"})
    checked([(None, {"short": "a dog"}), ("rex", {"a": "b", "c": "[V]"})], class_word="dog")


def test_each_concept_that_was_named_needs_the_token_and_each_that_trains_alone() -> None:
    captions = [("rex", {"a": "a [V]"}), ("tom", {"a": "a cat"}), ("tom", {"a": "his hat"})]
    checked(captions, class_word={"rex": "dog"})
    checked(captions, class_word="animal")
    for more in (
        {"alone": True, "class_word": "animal"},
        {"class_word": {"": "cat", "rex": "dog"}},
    ):
        rows = [
            (concept if "alone" in more or concept == "rex" else "", c) for concept, c in captions
        ]
        with pytest.raises(DataError, match=r"no caption of concept '(tom)?' holds '\[V\]'"):
            checked(rows, **more)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapters": "full", "source": "disaggregated"}, "adapters: full, allowed: adapters: lo"),
        ({"method": {"objective": "sft"}, "source": "fused"}, "objective: sft, allowed: none"),
        ({"method": {"objective": "off_policy"}}, "objective: off_policy, allowed: none"),
        ({"data": {"token": "do"}}, "holds data.token"),
        ({"data": {"preservation": {"class_word": " dog"}}}, "class_word: ' dog', allowed: a word"),
        ({"data": {"preservation": {"class_word": {}}}}, "a word for each concept"),
        ({"data": {"preservation": {"weight": 2}}}, "without data.preservation.class_word"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(sections: dict, message: str) -> None:
    data = {"source": "unused", "preservation": {"class_word": "dog"}} | sections.pop("data", {})
    with pytest.raises((ConfigError, ValueError), match=message):
        make_config("base", data=data, **sections)
