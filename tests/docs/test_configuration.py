"""docs/configuration.md is the reference of this very config."""

from __future__ import annotations

import re

from dopsd.config import RunConfig, reference
from dopsd.config.messages import RENAMED
from tests.docs.pages import ROOT


def test_the_page_is_fresh() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference() + "\n", (
        "regenerate it: dopsd config --reference > docs/configuration.md"
    )


def test_every_key_has_a_default_what_is_allowed_and_a_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \|$", reference(), re.MULTILINE)
    assert {"adapters", "learner.lr", "data.prior.count"} <= {key for key, *_ in rows}
    assert len(rows) > 100 and all(all(cells) and "None" not in cells for cells in rows)
    sections = re.findall(r"^## `([\w.]+)`\n\n(.*)$", reference(), re.MULTILINE)
    assert all(meaning for _, meaning in sections)
    assert {name.split(".")[0] for name, _ in sections} <= set(RunConfig.model_fields)


def test_the_changelog_names_every_renamed_key() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in text, old
