"""The comparison's arithmetic: trials of one budget, pooled seeds, verdicts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dopsd.config.load import dump_config, dump_yaml
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import ConfigError, DataError
from dopsd.experiments.reproduce.rates import Tried, candidates, chosen, tried
from dopsd.experiments.reproduce.runs import adapters_of, pending, seconds_of
from dopsd.experiments.reproduce.table import (
    BASE_TITLE,
    Line,
    Measured,
    lines_of,
    markdown,
    pooled,
    read,
    to_json,
    verdicts,
)
from dopsd.experiments.reproduce.variants import FULL, QUICK, TUNING_SEED, VARIANTS, config_of
from dopsd.experiments.reproduce.variants import trials as trials_of
from dopsd.intervals import Value, wilson
from dopsd.shapes.concepts import CONCEPTS

DOPSD, SFT = (next(v for v in VARIANTS if v.name == name) for name in ("dopsd", "sft"))


def trials(variants, seeds, lr=5e-4):
    return trials_of(variants, tuple(CONCEPTS), range(seeds), lambda variant, concept: lr)


def test_trials_differ_in_what_their_rows_say_alone() -> None:
    chosen = trials(VARIANTS, seeds=2)
    assert len({trial.name for trial in chosen}) == len(chosen) == 2 * 2 * len(VARIANTS)
    assert {trial.seed for trial in chosen[: len(chosen) // 2]} == {0}, "whole comparisons first"
    base = config_of(chosen[0], FULL, "runs/x").model_dump()
    free = {
        *("run.name", "run.folder", "run.seed", "data.source", "data.shards"),
        "data.prior",  # its file of prompts is of the seed
        *("method.objective", "method.off_policy_states", "method.teacher", "method.ema_decay"),
    }
    extra = {"off-policy-teacher-long": {"learner.steps"}, "sft-on-adapter": {"model.merge"}}
    for trial in chosen:
        other = config_of(trial, FULL, "runs/x").model_dump()
        changed = {
            f"{section}.{key}"
            for section, values in base.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != other[section][key]
        }
        assert changed <= free | extra.get(trial.variant.name, set()), trial.name
    assert set(QUICK) <= {variant.name for variant in VARIANTS}


def test_the_adapter_sees_the_bases_own_pictures_alone_and_is_one_for_all_concepts() -> None:
    (bars, ring) = trials([v for v in VARIANTS if v.on_adapter], seeds=1)
    assert bars.adapter == ring.adapter
    assert adapters_of([*trials(VARIANTS, seeds=1), bars]) == [bars.adapter]
    assert [a.seed for a in adapters_of(trials(VARIANTS, seeds=2))] == [0, 1]
    made = config_of(bars.adapter, FULL, "runs/x")
    assert made.data.concept_weights == {"bars": 0} and made.data.prior.weight == 1
    assert (made.method.objective, made.learner.lr) == ("sft", 1e-4)
    for trial in (bars, ring):
        config = config_of(trial, FULL, "runs/x")
        assert config.model.merge == [f"{made.run.folder}/lora.safetensors"]
        assert config.data.concept_weights == {} and config.data.prior.weight < 1


def test_each_row_is_tried_at_the_same_rates_and_takes_its_best() -> None:
    fifth = next(v for v in VARIANTS if v.name == "sft-fifth")
    tries = candidates((DOPSD, fifth), ("bars", "ring"), (1e-4, 5e-4), TUNING_SEED)
    assert {trial.seed for trial in tries} == {TUNING_SEED} and len(tries) == 8
    assert [trial.lr for trial in tries[:4]] == pytest.approx([1e-4, 5e-4, 2e-5, 1e-4])
    choices = tried(tries, lambda trial: Tried(trial.lr, 0.5, 0.9, 1.2))
    assert choices.keys() == {(v.name, c) for v in (DOPSD, fifth) for c in ("bars", "ring")}
    blurred, good, unlearned = (
        Tried(5e-4, 1.0, 0.9, 0.2),
        Tried(2e-4, 0.8, 0.9, 1.4),
        Tried(1e-4, 0.0, 1.0, 1.0),
    )
    assert good.score == pytest.approx(0.72), "more contrast than the base has is no merit"
    assert chosen([blurred, good, unlearned]) == 2e-4
    assert chosen([replace(blurred, concept=0.0), unlearned]) == 1e-4, "what preserves more"


def score(model: str, group: str, column: str) -> tuple[Value, int]:
    rates = {
        ("base", "bars", "concept"): 0.02,
        ("base", "prior", "ok"): 0.80,
        ("bars-dopsd-s0-lr0.0005", "bars", "concept"): 0.70,
        ("bars-dopsd-s1-lr0.0005", "bars", "concept"): 0.90,
        ("bars-dopsd-s0-lr0.0005", "prior", "ok"): 0.78,
        ("bars-dopsd-s1-lr0.0005", "prior", "ok"): 0.76,
        ("bars-sft-s0-lr0.0005", "bars", "concept"): 0.60,
        ("bars-sft-s1-lr0.0005", "bars", "concept"): 0.60,
        ("bars-sft-s0-lr0.0005", "prior", "ok"): 0.70,
        ("bars-sft-s1-lr0.0005", "prior", "ok"): 0.70,
    }
    errors = {"base": 0.02, "bars-dopsd-s0-lr0.0005": 0.02, "bars-dopsd-s1-lr0.0005": 0.03}
    if column == "palette_error":
        value = errors.get(model, 0.04)
        return Value(value, value, value), 100
    if column == "crisp":
        value = 0.6 if "dopsd" in model else 0.1
        return Value(value, value, value), 100
    return Value(rates[model, group, column], 0, 1), 100


def ratio(model: str, column: str) -> Value:
    if column in ("contrast", "crisp"):
        value = 0.95 if "dopsd" in model else 0.2
        return Value(value, value - 0.02, value + 0.02)
    value = score(model, "prior", column)[0].value / score("base", "prior", column)[0].value
    return Value(value, value - 0.02, value + 0.02)


def test_seeds_are_pooled_and_held_against_the_base() -> None:
    chosen_trials = [t for t in trials((DOPSD, SFT), seeds=2) if t.concept == "bars"]
    found = Measured(score, ratio, lambda model: Value(0.9, 0.8, 1.0), lambda model: 60.0)
    choices = {("sft", "bars"): [Tried(5e-4, 0.6, 0.9, 0.2), Tried(1e-4, 0.1, 0.9, 0.5)]}
    base, ours, sft = lines = lines_of(chosen_trials, FULL, "base", "prior", found, choices)
    assert (base.title, base.kept.value, base.blur.value) == (BASE_TITLE, 1.0, 1.0)
    # Two trainings drew the same 100 prompts: as many independent draws as prompts, not pictures.
    assert ours.concept == Value(pytest.approx(0.8), *wilson(80, 100)) and ours.seeds == 2
    assert ours.kept.value == pytest.approx(0.77 / 0.80)
    assert ours.blur.value == pytest.approx(1.25)
    assert sft.kept.value == pytest.approx(0.875) and sft.blur.value == pytest.approx(2.0)
    assert json.loads(to_json(lines))[1]["ok"]["value"] == pytest.approx(0.77)
    assert "| bars | SFT | 2 | 0.0005 | 0.600 [" in markdown(lines)
    assert "| bars | SFT | 0.0005 | 0.600 | 0.900 | 0.200 | 0.108 | yes |" in markdown(lines)
    assert "| bars | SFT | 0.0001 | 0.100 | 0.900 | 0.500 | 0.045 |  |" in markdown(lines)
    assert (sft.crisp.value, sft.diversity.value, sft.seconds) == (0.2, 0.9, 60.0)
    learned, lost, better = verdicts(lines)
    assert learned.endswith("crisp cells: yes)") and lost.endswith("crisp cells: yes)")
    assert better.endswith("3 times as crisply: yes")


def test_tables_of_other_seeds_become_one(tmp_path) -> None:
    def line(title: str, seeds: int, value: float, lr: float = 5e-4) -> Line:
        spread = Value(value, value - 0.1, value + 0.1)
        tries = (Tried(lr, value, value, value),)
        return Line("bars", title, seeds, 200, lr, 60 * value, tries, *[spread] * 9)

    files = []
    for number, (seeds, value) in enumerate(((1, 0.6), (2, 0.9))):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(to_json([line(BASE_TITLE, 1, 0.5), line("SFT", seeds, value)]))
    base, sft = pooled([read(str(file)) for file in files])
    assert (base.seeds, base.ok.value) == (1, 0.5)
    assert sft.seeds == 3 and sft.kept.value == pytest.approx(0.8)
    assert sft.seconds == pytest.approx(48) and sft.tried == (Tried(5e-4, 0.6, 0.6, 0.6),)
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
    (folder / "config.yaml").write_text(dump_config(config))
    assert pending([trial], FULL, str(tmp_path)) == [trial], "it never finished"
    (folder / "summary.json").write_text("{}")
    assert pending([trial], FULL, str(tmp_path)) == [trial], "its LoRA is gone"
    (folder / "lora.safetensors").touch()
    assert pending([trial], FULL, str(tmp_path)) == []
    with pytest.raises(DataError, match=r"summary\.json.*seconds: missing"):
        seconds_of(trial, str(tmp_path))
    (folder / "summary.json").write_text('{"seconds": 12.5, "steps": 200}')
    assert seconds_of(trial, str(tmp_path)) == 12.5
    older = config.model_dump(mode="json")
    del older["lora"]["init"], older["library"]
    (folder / "config.yaml").write_text(dump_yaml(older))
    assert pending([trial], FULL, str(tmp_path)) == [], "an older dopsd knew fewer keys"
    older["data"]["shapes_count"] = 17
    (folder / "config.yaml").write_text(dump_yaml(older))
    told = r"s0-lr0\.0005 was trained with data\.shapes_count=17, this .* has 16; allowed: another"
    with pytest.raises(ConfigError, match=told):
        pending([trial], FULL, str(tmp_path))


def test_a_row_on_a_training_adapter_is_known_again_with_the_digest_that_its_run_wrote(tmp_path):
    (variant,) = [variant for variant in VARIANTS if variant.name == "sft-on-adapter"]
    trial = trials((variant,), seeds=1)[0]
    config = with_absolute_paths(config_of(trial, FULL, str(tmp_path)))
    config.model.merge_sha256 = ["0" * 64]
    folder = tmp_path / "runs" / trial.name
    folder.mkdir(parents=True)
    for name, text in (("config.yaml", dump_config(config)), ("summary.json", "{}")):
        (folder / name).write_text(text)
    (folder / "lora.safetensors").touch()
    assert pending([trial], FULL, str(tmp_path)) == []
