"""The card's arithmetic: gates from rows, and back from the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dopsd.cli.research import shapes as shapes_cli
from dopsd.errors import ConfigError
from dopsd.experiments.shapes_card import card
from dopsd.experiments.shapes_card.card import evaluate, prompts_of
from dopsd.experiments.shapes_card.card_gates import gates
from dopsd.experiments.shapes_card.card_record import Card, Effect, Row, markdown, pooled, write
from dopsd.intervals import Value, wilson
from dopsd.shapes.world import render


def _row(model, kind, steps, guidance, picture=False, **rates):
    values = {name: Value(rate, rate - 0.02, rate + 0.02) for name, rate in rates.items()}
    return Row(model, kind, picture, steps, guidance, 200, values)


def _rows(few=0.3, many=0.97, turbo_ok=0.95, contrast=0.98, crisp=0.9):
    rows = []
    for kind in ("full", "partial"):
        rows += [
            _row("undistilled", kind, 16, 1.5, named=0.97, ok=0.96, contrast=0.9, crisp=0.7),
            _row("undistilled", kind, 64, 0.0, named=0.95, ok=0.90, contrast=many, crisp=0.95),
            _row("undistilled", kind, 4, 0.0, named=0.9, ok=0.5, contrast=few, crisp=0.02),
            _row("turbo", kind, 4, 0.0, named=0.96, ok=turbo_ok, contrast=contrast, crisp=crisp),
        ]
    return rows


def test_gates_follow_their_definitions():
    verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows()))}
    assert verdict["crisp, full"] and verdict["few-step gap, full"] and verdict["distilled, full"]
    assert verdict["commits, full"]
    for change, fallen in (
        ({"few": 0.51}, "few-step gap"),
        ({"many": 0.84}, "few-step gap"),
        ({"turbo_ok": 0.90}, "distilled"),
        ({"contrast": 0.89}, "commits"),
        ({"crisp": 0.75}, "commits"),
    ):
        verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows(**change)))}
        assert [n for n, met in verdict.items() if not met and "full" in n] == [f"{fallen}, full"]


def test_the_context_gate_asks_for_three_times_the_blind_rate():
    def met(shown, blind):
        rows = [
            _row("turbo", "bars", 4, 0.0, picture=True, concept=shown, named=0.9),
            _row("turbo", "bars", 4, 0.0, concept=blind, named=0.9),
        ]
        return gates(Card("", 1, (0,), rows))[0].met

    assert met(0.6, 0.1) and not met(0.6, 0.3) and not met(0.4, 0.0)


def test_perfect_pictures_score_one_and_count_the_concept():
    for kind in ("full", "partial", "bars", "ring"):
        prompts = prompts_of(kind, 20, seed=0)
        values = evaluate(prompts, render([p.scene for p in prompts]), kind)
        assert values["ok"].value == 1.0
        if kind in ("bars", "ring"):
            assert values["concept"].value == values["same_place"].value == 1.0


WITH, WITHOUT = True, False


def _effects(**changes: float) -> list[Effect]:
    """Of a card that meets its gates but for ``changes``, named ``objective_column[_alone]``."""
    good = {
        ("base", WITHOUT): {"concept": 0.02, "prior_ok": 0.9, "prior_crisp": 0.9, "crisp": 0.9},
        ("dopsd", WITH): {"concept": 0.5, "prior_ok": 0.88, "prior_crisp": 0.85, "crisp": 0.6},
        ("sft", WITH): {"concept": 0.5, "prior_ok": 0.7, "prior_crisp": 0.2, "crisp": 0.1},
        ("dopsd", WITHOUT): {"concept": 0.9, "prior_ok": 0.4, "prior_crisp": 0.8, "crisp": 0.8},
        ("sft", WITHOUT): {"concept": 0.9, "prior_ok": 0.4, "prior_crisp": 0.1, "crisp": 0.1},
    }
    for name, value in changes.items():
        objective, column = name.removesuffix("_alone").split("_", 1)
        good[objective, not (name.endswith("_alone") or objective == "base")][column] = value

    def values(names: dict[str, str], rates: dict[str, float]) -> dict[str, Value]:
        return {name: Value(*3 * [rates.get(key, 0.1)]) for name, key in names.items()}

    asked = {"concept": "concept", "crisp": "crisp"}
    prior = {"ok": "prior_ok", "crisp": "prior_crisp"}
    prior |= {name: name for name in ("contrast", "palette_error", "leaked")}
    return [
        Effect(name, "bars", seed, 100, beside, values(asked, rates), values(prior, rates))
        for (name, beside), rates in good.items()
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("fallen", "changes"),
    [
        ("", {}),
        ("both learn", {"dopsd_concept": 0.03}),
        ("both learn", {"sft_concept": 0.03}),
        ("dopsd keeps", {"dopsd_prior_ok": 0.85}),
        ("dopsd keeps", {"dopsd_prior_crisp": 0.8}),
        ("sft loses few steps", {"sft_prior_crisp": 0.4}),
        ("drawn crisply", {"sft_crisp": 0.21}),
        ("without prior samples", {"dopsd_crisp_alone": 0.69}),
        ("without prior samples", {"sft_crisp_alone": 0.21}),
    ],
)
def test_the_paper_s_contrast_is_held_against_each_of_its_gates(fallen, changes):
    found = gates(Card("", 1, (0,), effects=_effects(**changes)))
    assert len(found) == 5
    assert [g.name for g in found if not g.met] == ([f"effect, bars, {fallen}"] if fallen else [])


def test_an_effect_that_was_not_measured_is_an_open_gate():
    assert [(g.name, g.met) for g in gates(Card("", 1, (0,)))] == [("effect", False)]


def test_seeds_are_pooled_as_pictures():
    one, two = (e for e in _effects() if (e.objective, e.prior_samples) == ("dopsd", WITH))
    two = replace(two, asked={"concept": Value(0.7, 0, 1), "crisp": Value(0.8, 0.7, 1.0)})
    values = pooled([one, two], "bars", "dopsd", WITH)
    assert values["concept"] == Value(0.6, *wilson(120, 200))
    assert values["crisp"] == Value(*map(pytest.approx, (0.7, 0.65, 0.8)))


def test_a_card_survives_the_file(tmp_path):
    card = Card("abc", 10, (0, 1), _rows(), _effects())
    card.gates = gates(card)
    write(card, tmp_path)
    assert json.loads((tmp_path / "card.json").read_text())["sha256"] == card.sha256
    text = (tmp_path / "README.md").read_text()
    assert text == markdown(card) and "few-step gap, full" in text
    assert "| bars | dopsd | half | 0.500 [" in text


def test_a_card_takes_the_place_of_our_own_alone(tmp_path):
    card = Card("abc", 10, (0,), _rows())
    write(card, tmp_path / "ours")
    write(replace(card, sha256="other"), tmp_path / "ours")
    assert "other" in (tmp_path / "ours" / "card.json").read_text()
    for folder, name in (("ours", "README.md"), ("theirs", "README.md"), ("theirs", "notes.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"--weights: .*{folder}"):
            write(card, tmp_path / folder)
        assert (tmp_path / folder / name).read_text() == "mine"
        (tmp_path / folder / name).unlink()


@pytest.mark.parametrize("words", [["card", "--pictures"], ["build-base", "--work"]])
def test_a_folder_of_somebody_is_refused_before_anything_is_computed(words, tmp_path):
    (tmp_path / "build.log").write_text("mine")
    out = ["--out", str(tmp_path / "out")] if words[0] == "build-base" else []
    done = CliRunner().invoke(shapes_cli.app, [*words, str(tmp_path), *out])
    assert isinstance(done.exception, ConfigError), done.output
    assert str(done.exception).startswith(words[1]) and "build.log" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["build.log"]


def test_the_command_line_renders_a_concept_and_names_a_wrong_one(tmp_path):
    runner = CliRunner()
    done = runner.invoke(shapes_cli.app, ["concept", "ring", str(tmp_path / "set"), "--count", "3"])
    assert done.exit_code == 0 and (tmp_path / "set" / "data.jsonl").is_file()
    wrong = runner.invoke(shapes_cli.app, ["concept", "dots", str(tmp_path / "other")])
    assert wrong.exit_code != 0 and "bars, ring" in str(wrong.exception)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--objective", "sftt"], r"--objective: 'sftt', allowed: dopsd, sft, off_policy"),
        (["--objective", "sft", "--concept", "dots"], "--concept: 'dots', allowed: bars, ring"),
        (["--objective", "sft", "--captions", "long"], "--captions: 'long', allowed: short, "),
    ],
)
def test_a_comparison_that_is_asked_wrongly_is_refused(words, line, monkeypatch):
    monkeypatch.setattr(f"{card.__name__}.load", lambda *folder: pytest.fail("weights are read"))
    done = CliRunner().invoke(shapes_cli.app, ["effect", *words])
    assert isinstance(done.exception, ConfigError) and line in str(done.exception)
