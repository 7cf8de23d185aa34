from __future__ import annotations

import re

import pytest

from dopsd.errors import DataError
from dopsd.library.catalogue.names import folder_of, refuse_alike

HOSTILE = [
    *("../../x", "/etc/passwd", "<img src=x onerror=alert(1)>", "a" * 1000, "\N{CAT FACE}" * 9),
    *("CON", "con.txt", ".", "..", "", " ", "a/b", "a\\b", "a:b", "A", "a", "-", "日本語", "[V]"),
]


def test_whatever_a_concept_is_called_its_folder_is_harmless_and_its_own() -> None:
    folders = [folder_of(name) for name in HOSTILE]
    for folder in folders:
        assert re.fullmatch(r"[0-9a-f]{2}/[a-z0-9-]{1,40}-[0-9a-f]{16}", folder)
    assert len({folder.lower() for folder in folders}) == len(HOSTILE)
    assert folder_of("Pets/Réx") != folder_of("pets-rex")
    assert folder_of("Pets/Réx").split("/")[1].startswith("pets-rex-")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Rex", "rex"), ("my cat", "my  cat"), ("rex", " rex"), ("e\u0301", "\xe9"), ("ﬁ", "fi")],
)
def test_one_concept_spelled_two_ways_is_refused(one: str, other: str) -> None:
    with pytest.raises(DataError, match=r"differ in case, blanks or Unicode form alone"):
        refuse_alike(["else", one, other])


def test_names_that_differ_are_fine() -> None:
    refuse_alike(["rex", "rexx", "re x", "max"])
