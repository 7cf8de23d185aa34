"""The tables of docs/results.md are those that the stored scores give."""

from __future__ import annotations

import pytest

from dopsd.experiments.reproduce import table
from tests.docs.pages import ROOT

REPRODUCE = ROOT / "docs" / "reproduce"


@pytest.mark.parametrize("names", [("seed-0", "seeds-1-2"), ("lr-2.5e-4",)])
def test_what_pool_prints_stands_in_the_results(names: tuple[str, ...]) -> None:
    lines = table.pooled([table.read(str(REPRODUCE / f"{name}.json")) for name in names])
    assert table.markdown(lines).strip() in (ROOT / "docs" / "results.md").read_text()
