"""The whole comparison at tiny step counts: its structure and that it goes on, not its scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from dopsd.cli.main import main
from dopsd.data.run_data import prepared
from dopsd.driver.context_cache import find_context_cache
from dopsd.driver.drawing.prior import with_prior
from dopsd.driver.monitoring.progress import Progress
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import ResourceError
from dopsd.experiments.reproduce.shapes import Comparison, reproduce
from dopsd.experiments.reproduce.variants import (
    ADAPTER,
    FULL,
    RATES,
    TUNING_SEED,
    VARIANTS,
    Trial,
    config_of,
    trials,
)
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
    asked = Comparison(
        variants=[v for v in VARIANTS if v.name in rows],
        concepts=("bars",),
        seeds=range(1),
        rates=(5e-4,),
        budget=replace(FULL, steps=1, batch=2, images=2, prior=3),
        prompts=3,
    )
    budget = asked.budget
    chosen = trials(asked.variants, asked.concepts, asked.seeds, lambda *_: 5e-4)
    titles: list[str] = []

    def begin(title: str) -> Progress:
        titles.append(title)
        return Progress()

    lines = reproduce(asked, ".", begin, at_once=2)
    count = len(rows)
    training = f"{count} trials, {count} at a time"
    assert titles == ["contexts of bars, seed 0", training, "evaluation", "diversity"]
    for trial in chosen:
        timeline = (tmp_path / "runs" / trial.name / "timeline.jsonl").read_text()
        assert "learner" in timeline and "encoder" not in timeline, "contexts were there already"
        assert max(ups(tmp_path / "runs" / trial.name / "lora.safetensors").values()) > 0
    assert all(line.seconds > 0 and 0.5 < line.diversity.value < 2 for line in lines[1:])
    drawn = ["base, not tuned", "D-OPSD (EMA 0.9999)", "SFT"][: 1 + count]
    assert [line.title for line in lines] == drawn
    assert len(json.loads((tmp_path / "table.json").read_text())) == len(drawn)
    assert (tmp_path / "table.md").read_text().count("| bars |") == len(drawn)
    grid = Image.open(tmp_path / "grid-bars.png")
    assert grid.width >= len(drawn) * 192, "one column for the base and for each variant"
    trained = set((tmp_path / "prior-s0.txt").read_text().splitlines())
    drawn_of = [json.loads(row)["prompt"] for row in (tmp_path / "evaluation/prompts.jsonl").open()]
    assert len(trained) == 3 and trained.isdisjoint(drawn_of)

    for variant in (*VARIANTS, ADAPTER):
        config = with_absolute_paths(config_of(Trial(variant, "bars", 0, 5e-4), budget, "."))
        manifest = prepared(config, lambda status: None)
        manifest = with_prior(config, manifest, resolve_roles(config, 0).learner, lambda *_: None)
        assert find_context_cache(config, manifest, lambda *_: None), (
            f"{variant.name} would encode anew"
        )

    titles.clear()
    again = reproduce(asked, ".", begin, at_once=2)
    assert titles == ["evaluation", "diversity"] and again == lines


@pytest.mark.integration
def test_more_at_once_than_the_cluster_has_cores_is_refused_before_anything(
    ray_cluster, tmp_path: Path
):
    with pytest.raises(
        ResourceError, match=r"^--at-once: 99, the cluster has 4 CPUs; allowed: 1-4"
    ):
        asked = Comparison(VARIANTS[:1], ("bars",), range(1), (5e-4,), FULL, 3)
        reproduce(asked, str(tmp_path), lambda title: Progress(), 99)
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
    (chosen, folder, *_), (every, usual, *_) = asked
    assert isinstance(chosen, Comparison) and isinstance(every, Comparison)
    assert [variant.name for variant in chosen.variants] == ["dopsd-live", "sft"]
    assert (chosen.concepts, chosen.seeds, chosen.rates) == (("ring",), range(1), (1e-4,))
    assert (chosen.budget.steps, folder) == (100, "runs/reproduce-quick-sft-dopsd-live")
    assert len(every.variants) * len(every.concepts) * len(every.seeds) == 66
    assert (every.budget, every.rates, usual) == (FULL, RATES, "runs/reproduce")


def test_no_table_holds_the_seed_that_rates_are_chosen_on(capsys):
    assert main(["reproduce", "shapes", "--first-seed", str(TUNING_SEED - 1)]) == 1
    assert f"allowed: seeds without {TUNING_SEED}" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.integration
def test_rates_are_chosen_and_the_adapter_lies_under_its_row(ray_cluster, tmp_path: Path):
    asked = Comparison(
        variants=[v for v in VARIANTS if v.name == "sft-on-adapter"],
        concepts=("ring",),
        seeds=range(1),
        rates=(1e-4, 5e-4),
        budget=replace(FULL, steps=1, batch=2, images=2, prior=3),
        prompts=3,
    )
    _, line = reproduce(asked, str(tmp_path), lambda title: Progress(), at_once=2)
    assert [each.lr for each in line.tried] == [1e-4, 5e-4] and line.lr in (1e-4, 5e-4)
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
    tuning = [f"ring-sft-on-adapter-s{TUNING_SEED}-lr{lr:g}" for lr in (1e-4, 5e-4)]
    adapters = [f"bars-adapter-s{seed}-lr0.0001" for seed in (0, TUNING_SEED)]
    assert runs == sorted([*adapters, *tuning, f"ring-sft-on-adapter-s0-lr{line.lr:g}"])
    with safe_open(tmp_path / "runs" / runs[-1] / "lora.safetensors", "pt") as file:
        assert json.loads(file.metadata()["dopsd.merged"])[0]["file"] == "lora.safetensors"
    assert "Rates, chosen on a seed" in (tmp_path / "table.md").read_text()
