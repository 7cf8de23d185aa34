"""The whole comparison at tiny step counts: its structure and that it goes on, not its scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dopsd.reproduce.shapes import reproduce
from dopsd.reproduce.variants import FULL, VARIANTS, trials
from dopsd.runtime.progress import Progress


@pytest.mark.slow
def test_it_trains_evaluates_and_draws_and_trains_nothing_twice(ray_cluster, tmp_path: Path):
    variants = tuple(v for v in VARIANTS if v.name in ("dopsd", "sft"))
    chosen = [trial for trial in trials(variants, seeds=1) if trial.concept == "bars"]
    budget = replace(FULL, steps=1, batch=2, images=2, prior=3)
    titles: list[str] = []

    def begin(title: str) -> Progress:
        titles.append(title)
        return Progress()

    lines = reproduce(chosen, budget, str(tmp_path), 3, begin, lanes=2)
    assert titles == ["contexts of bars, seed 0", "2 trials, 2 at a time", "evaluation"]
    for trial in chosen:
        timeline = (tmp_path / "runs" / trial.name / "timeline.jsonl").read_text()
        assert "learner" in timeline and "encoder" not in timeline, "contexts were there already"
    assert [line.title for line in lines] == [
        "base, not tuned",
        "D-OPSD (EMA 0.9999)",
        "SFT",
    ]
    assert len(json.loads((tmp_path / "table.json").read_text())) == 3
    assert (tmp_path / "table.md").read_text().count("| bars |") == 3
    grid = Image.open(tmp_path / "grid-bars.png")
    assert grid.width >= 3 * 192, "one column for the base and for each variant"
    trained = set((tmp_path / "prior-s0.txt").read_text().splitlines())
    asked = [json.loads(row)["prompt"] for row in (tmp_path / "evaluation/prompts.jsonl").open()]
    assert len(trained) == 3 and trained.isdisjoint(asked)

    titles.clear()
    again = reproduce(chosen, budget, str(tmp_path), 3, begin, lanes=2)
    assert titles == ["evaluation"] and again == lines
