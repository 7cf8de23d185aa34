"""The tables of README.md and docs/results.md are those of the shipped base's card, and of what
`dopsd reproduce` wrote."""

from __future__ import annotations

import json

import pytest

from dopsd import shapes
from dopsd.experiments.reproduce.table import markdown, read
from tests.docs.pages import ROOT

RESULTS = (ROOT / "docs" / "results.md").read_text()
README = (ROOT / "README.md").read_text().partition("## How good")[2].partition("\n## ")[0]


def rows(text: str, cells: int) -> list[list[str]]:
    """Rows of that many cells, without the rules under heads."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    return [row for row in found if len(row) == cells and not set(row[0]) <= set("- ")]


def card_table() -> str:
    """What tuning does to the base, as its model card says it."""
    page = (shapes.weights_path() / "README.md").read_text()
    return page[page.index("| tuned on | by") : page.index("| gate |")].strip()


def test_the_results_hold_the_cards_table() -> None:
    assert card_table() in RESULTS


def test_the_readmes_rows_are_those_of_the_results() -> None:
    # tuned on, by, prior samples, concept, crisp, prior ok, prior crisp, ...
    full = {(row[0], row[1], row[2].strip()): row for row in rows(card_table(), 10)}
    names = {"D-OPSD": ("dopsd", "half"), "SFT": ("sft", "half"), "base, not tuned": ("base", "")}
    (_, *shown) = rows(README, 7)
    assert [row[0] for row in shown] == list(names)
    for who, *numbers in shown:
        for concept, (drawn, crisp, kept) in zip(("bars", "ring"), (numbers[:3], numbers[3:])):
            row, base = full[concept, *names[who]], full[concept, "base", ""]
            assert [drawn, crisp] == [row[3], row[4]], (who, concept)
            share = float(row[6].split()[0]) / float(base[6].split()[0])
            assert abs(float(kept.strip("*")) - share) < 0.006, (who, concept, share)


@pytest.mark.parametrize(
    ("concept", "kept"),
    [
        ("bars", {"D-OPSD (EMA 0.9999)": "0.93", "SFT": "0.13"}),
        ("ring", {"D-OPSD (EMA 0.9999)": "0.89", "SFT": "0.13"}),
    ],
)
def test_the_results_hold_the_table_of_the_comparison(concept: str, kept: dict[str, str]) -> None:
    lines = read(str(ROOT / "docs" / "reproduce" / f"{concept}.json"))
    assert len(lines) == 7 and markdown(lines).strip() in RESULTS
    found = {line.title: f"{line.crisp.value:.2f}" for line in lines}
    assert {title: found[title] for title in kept} == kept


def test_gates_that_are_not_met_are_named() -> None:
    card = json.loads((shapes.weights_path() / "card.json").read_text())
    missed = [gate["measured"] for gate in card["gates"] if not gate["met"]]
    assert len(card["gates"]) == 25 and len(missed) == 2
    for figure in ("0.905", "0.887"):
        assert figure in RESULTS and any(figure in measured for measured in missed)
