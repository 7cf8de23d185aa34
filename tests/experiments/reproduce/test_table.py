"""The comparison's arithmetic: trials of one budget, pooled seeds, verdicts."""

from __future__ import annotations

import json

import pytest

from dopsd.driver.checks import with_absolute_paths
from dopsd.errors import ConfigError, DataError
from dopsd.experiments.reproduce.runs import pending
from dopsd.experiments.reproduce.table import (
    BASE_TITLE,
    Line,
    lines_of,
    markdown,
    pooled,
    read,
    to_json,
    verdicts,
)
from dopsd.experiments.reproduce.variants import FULL, QUICK, VARIANTS, config_of, trials
from dopsd.intervals import Value, wilson

DOPSD, SFT = (next(v for v in VARIANTS if v.name == name) for name in ("dopsd", "sft"))


def test_trials_differ_in_method_seed_and_concept_alone() -> None:
    chosen = trials(VARIANTS, seeds=2)
    assert len({trial.name for trial in chosen}) == len(chosen) == 2 * 2 * len(VARIANTS)
    assert {trial.seed for trial in chosen[: len(chosen) // 2]} == {0}, "whole comparisons first"
    base = config_of(chosen[0], FULL, "runs/x").model_dump()
    for trial in chosen:
        other = config_of(trial, FULL, "runs/x").model_dump()
        changed = {
            f"{section}.{key}"
            for section, values in base.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != other[section][key]
        }
        assert changed <= {
            "run.name",
            "run.folder",
            "run.seed",
            "data.source",
            "data.shards",
            "data.prior",  # its file of prompts is of the seed
            "method.objective",
            "method.off_policy_states",
            "method.teacher",
            "method.ema_decay",
        }
    assert set(QUICK) <= {variant.name for variant in VARIANTS}


def score(model: str, group: str, column: str) -> tuple[Value, int]:
    rates = {
        ("base", "bars", "concept"): 0.02,
        ("base", "prior", "ok"): 0.80,
        ("bars-dopsd-s0", "bars", "concept"): 0.70,
        ("bars-dopsd-s1", "bars", "concept"): 0.90,
        ("bars-dopsd-s0", "prior", "ok"): 0.78,
        ("bars-dopsd-s1", "prior", "ok"): 0.76,
        ("bars-sft-s0", "bars", "concept"): 0.60,
        ("bars-sft-s1", "bars", "concept"): 0.60,
        ("bars-sft-s0", "prior", "ok"): 0.70,
        ("bars-sft-s1", "prior", "ok"): 0.70,
    }
    errors = {"base": 0.02, "bars-dopsd-s0": 0.02, "bars-dopsd-s1": 0.03}
    if column == "palette_error":
        value = errors.get(model, 0.04)
        return Value(value, value, value), 100
    return Value(rates[model, group, column], 0, 1), 100


def ratio(model: str, column: str) -> Value:
    value = score(model, "prior", column)[0].value / score("base", "prior", column)[0].value
    return Value(value, value - 0.02, value + 0.02)


def test_seeds_are_pooled_and_held_against_the_base() -> None:
    chosen = [t for t in trials((DOPSD, SFT), seeds=2) if t.concept == "bars"]
    base, ours, sft = lines = lines_of(chosen, FULL, "base", "prior", score, ratio)
    assert (base.title, base.kept.value, base.blur.value) == (BASE_TITLE, 1.0, 1.0)
    # Two trainings drew the same 100 prompts: as many independent draws as prompts, not pictures.
    assert ours.concept == Value(pytest.approx(0.8), *wilson(80, 100)) and ours.seeds == 2
    assert ours.kept.value == pytest.approx(0.77 / 0.80)
    assert ours.blur.value == pytest.approx(1.25)
    assert sft.kept.value == pytest.approx(0.875) and sft.blur.value == pytest.approx(2.0)
    assert json.loads(to_json(lines))[1]["ok"]["value"] == pytest.approx(0.77)
    assert "| bars | SFT | 2 | 0.600 [" in markdown(lines)
    learned, lost, better = verdicts(lines)
    assert learned.endswith("95% kept: yes)") and lost.endswith("loses 20%: NO)")
    assert better.endswith("beyond the intervals: yes")


def test_tables_of_other_seeds_become_one(tmp_path) -> None:
    def line(title: str, seeds: int, value: float, lr: float = 5e-4) -> Line:
        spread = Value(value, value - 0.1, value + 0.1)
        return Line("bars", title, seeds, 200, lr, spread, spread, spread, spread, spread)

    files = []
    for number, (seeds, value) in enumerate(((1, 0.6), (2, 0.9))):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(to_json([line(BASE_TITLE, 1, 0.5), line("SFT", seeds, value)]))
    base, sft = pooled([read(str(file)) for file in files])
    assert (base.seeds, base.ok.value) == (1, 0.5)
    assert sft.seeds == 3 and sft.kept.value == pytest.approx(0.8)
    assert (sft.kept.low, sft.kept.high) == (pytest.approx(0.7), pytest.approx(0.9))
    with pytest.raises(DataError, match=r"their rows differ \(\('bars', 'SFT', 200, 0\.0005\)\)"):
        pooled([read(str(files[0])), [base]])
    with pytest.raises(DataError, match=r"0\.0001\)\); allowed: equal rows, steps and lr"):
        pooled([[line("SFT", 1, 0.5, lr=1e-4)], [line("SFT", 1, 0.5)]])
    files[0].write_text('[{"title": "SFT"}]')
    with pytest.raises(DataError, match=r"0\.json: not a table\.json of `dopsd reproduce`"):
        read(str(files[0]))


def test_a_run_of_other_settings_is_refused_by_name(tmp_path) -> None:
    (trial,) = [t for t in trials((SFT,), seeds=1) if t.concept == "bars"]
    assert pending([trial], FULL, str(tmp_path)) == [trial]
    folder = tmp_path / "runs" / trial.name
    folder.mkdir(parents=True)
    config = with_absolute_paths(config_of(trial, FULL, str(tmp_path)))
    from dopsd.config import dump_config

    (folder / "config.yaml").write_text(dump_config(config))
    assert pending([trial], FULL, str(tmp_path)) == [trial], "it never finished"
    (folder / "summary.json").write_text("{}")
    assert pending([trial], FULL, str(tmp_path)) == [trial], "its LoRA is gone"
    (folder / "lora.safetensors").touch()
    assert pending([trial], FULL, str(tmp_path)) == []
    (folder / "config.yaml").write_text("learner: {}\n")
    with pytest.raises(ConfigError, match="bars-sft-s0 was trained by other settings; allowed"):
        pending([trial], FULL, str(tmp_path))
