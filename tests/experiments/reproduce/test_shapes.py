"""The whole comparison at tiny step counts: its structure and that it goes on, not its scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dopsd.cli.main import main
from dopsd.data.run_data import prepared
from dopsd.driver.checks import with_absolute_paths
from dopsd.driver.context_cache import find_context_cache
from dopsd.driver.prior import with_prior
from dopsd.driver.progress import Progress
from dopsd.errors import ResourceError
from dopsd.experiments.reproduce.shapes import reproduce
from dopsd.experiments.reproduce.variants import FULL, VARIANTS, Trial, config_of, trials
from dopsd.ray_cluster.placement import resolve_roles
from tests.helpers.loras import ups


@pytest.mark.integration
@pytest.mark.parametrize(
    "rows", [{"dopsd"}, pytest.param({"dopsd", "sft"}, marks=pytest.mark.nightly)]
)
def test_it_trains_evaluates_and_draws_and_trains_nothing_twice(
    ray_cluster, tmp_path: Path, monkeypatch, rows
):
    monkeypatch.chdir(tmp_path)  # where Ray's workers are not
    variants = tuple(v for v in VARIANTS if v.name in rows)
    chosen = [trial for trial in trials(variants, seeds=1) if trial.concept == "bars"]
    budget = replace(FULL, steps=1, batch=2, images=2, prior=3)
    titles: list[str] = []

    def begin(title: str) -> Progress:
        titles.append(title)
        return Progress()

    lines = reproduce(chosen, budget, ".", 3, begin, at_once=2)
    count = len(rows)
    training = f"{count} trials, {count} at a time"
    assert titles == ["contexts of bars, seed 0", training, "evaluation"]
    for trial in chosen:
        timeline = (tmp_path / "runs" / trial.name / "timeline.jsonl").read_text()
        assert "learner" in timeline and "encoder" not in timeline, "contexts were there already"
        assert max(ups(tmp_path / "runs" / trial.name / "lora.safetensors").values()) > 0
    drawn = ["base, not tuned", "D-OPSD (EMA 0.9999)", "SFT"][: 1 + count]
    assert [line.title for line in lines] == drawn
    assert len(json.loads((tmp_path / "table.json").read_text())) == len(drawn)
    assert (tmp_path / "table.md").read_text().count("| bars |") == len(drawn)
    grid = Image.open(tmp_path / "grid-bars.png")
    assert grid.width >= len(drawn) * 192, "one column for the base and for each variant"
    trained = set((tmp_path / "prior-s0.txt").read_text().splitlines())
    asked = [json.loads(row)["prompt"] for row in (tmp_path / "evaluation/prompts.jsonl").open()]
    assert len(trained) == 3 and trained.isdisjoint(asked)

    for variant in VARIANTS:
        config = with_absolute_paths(config_of(Trial(variant, "bars", 0), budget, "."))
        manifest = prepared(config, lambda status: None)
        manifest = with_prior(config, manifest, resolve_roles(config, 0).learner, lambda *_: None)
        assert find_context_cache(config, manifest, lambda *_: None), (
            f"{variant.name} would encode anew"
        )

    titles.clear()
    again = reproduce(chosen, budget, ".", 3, begin, at_once=2)
    assert titles == ["evaluation"] and again == lines


@pytest.mark.integration
def test_more_at_once_than_the_cluster_has_cores_is_refused_before_anything(
    ray_cluster, tmp_path: Path
):
    with pytest.raises(
        ResourceError, match=r"^--at-once: 99, the cluster has 4 CPUs; allowed: 1-4"
    ):
        reproduce(trials(VARIANTS[:1], 1), FULL, str(tmp_path), 3, lambda title: Progress(), 99)
    assert not list(tmp_path.iterdir())


def test_rows_are_chosen_by_name_and_have_a_folder_of_their_own(monkeypatch):
    asked: list[tuple[object, ...]] = []

    def stop(*arguments: object) -> None:
        asked.append(arguments)
        raise ResourceError("enough")

    monkeypatch.setattr("dopsd.experiments.reproduce.shapes.reproduce", stop)
    rows = ["--row", "sft", "--row", "dopsd-live", "--lr", "1e-4", "--concept", "ring"]
    assert main(["reproduce", "shapes", *rows, "--quick"]) == 1
    assert main(["reproduce", "shapes"]) == 1
    (chosen, budget, folder, *_), (every, full, usual, *_) = asked
    assert [trial.name for trial in chosen] == ["ring-dopsd-live-s0", "ring-sft-s0"]
    assert (budget.lr, budget.steps, folder) == (1e-4, 100, "runs/reproduce-quick-sft-dopsd-live")
    assert len(every) == 48 and (full, usual) == (FULL, "runs/reproduce")
