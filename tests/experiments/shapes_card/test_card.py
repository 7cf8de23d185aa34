"""The card's arithmetic: gates from rows, and back from the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dopsd.cli import shapes as shapes_cli
from dopsd.errors import ConfigError
from dopsd.experiments.shapes_card.card import evaluate, prompts_of
from dopsd.experiments.shapes_card.card_gates import gates
from dopsd.experiments.shapes_card.card_record import Card, Effect, Row, markdown, pooled, write
from dopsd.intervals import Value, wilson
from dopsd.shapes.world import render


def _row(model, kind, steps, guidance, picture=False, **rates):
    values = {name: Value(rate, rate - 0.02, rate + 0.02) for name, rate in rates.items()}
    return Row(model, kind, picture, steps, guidance, 200, values)


def _rows(few_ok=0.5, few_error=0.06, turbo_ok=0.95):
    rows = []
    for kind in ("full", "partial"):
        rows += [
            _row("undistilled", kind, 16, 1.5, named=0.97, ok=0.96, palette_error=0.02),
            _row("undistilled", kind, 16, 0.0, named=0.95, ok=0.90, palette_error=0.03),
            _row("undistilled", kind, 4, 0.0, named=0.9, ok=few_ok, palette_error=few_error),
            _row("turbo", kind, 4, 0.0, named=0.96, ok=turbo_ok, palette_error=0.02),
        ]
    return rows


def test_gates_follow_their_definitions():
    verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows()))}
    assert verdict["crisp, full"] and verdict["few-step gap, full"] and verdict["distilled, full"]
    verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows(few_error=0.04)))}
    assert not verdict["few-step gap, full"]
    verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows(few_ok=0.89)))}
    assert not verdict["few-step gap, full"]
    verdict = {g.name: g.met for g in gates(Card("", 1, (0,), _rows(turbo_ok=0.90)))}
    assert not verdict["distilled, full"]


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


def _effects(**rates: tuple[float, float, float]) -> list[Effect]:
    """By objective: concept, prior ok and prior palette error, over two seeds of 100 pictures."""
    return [
        Effect(
            objective,
            "bars",
            seed,
            100,
            asked={"concept": Value(concept, 0, 1)},
            prior={"ok": Value(ok, 0, 1), "palette_error": Value(error, error, error)},
        )
        for objective, (concept, ok, error) in rates.items()
        for seed in (0, 1)
    ]


def test_the_effect_asks_that_dopsd_learns_and_keeps_and_sft_loses():
    def verdict(**rates):
        card = Card("", 1, (0,), effects=_effects(**rates))
        return [gate.met for gate in gates(card)]

    base = (0.02, 0.90, 0.02)
    learns, keeps, loses, contrast = range(4)
    good = verdict(base=base, dopsd=(0.5, 0.88, 0.02), sft=(0.5, 0.7, 0.02))
    assert good[: loses + 1] == [True, True, True] and not good[contrast], "equal blur"
    assert verdict(base=base, dopsd=(0.5, 0.88, 0.02), sft=(0.5, 0.7, 0.03))[contrast]
    assert not verdict(base=base, dopsd=(0.5, 0.80, 0.02), sft=(0.5, 0.9, 0.03))[keeps]
    assert verdict(base=base, dopsd=(0.5, 0.80, 0.02), sft=(0.5, 0.9, 0.03))[loses], "by blur"
    assert not verdict(base=base, dopsd=(0.03, 0.90, 0.02), sft=(0, 0.88, 0.02))[learns]


def test_an_effect_that_was_not_measured_is_an_open_gate():
    assert [(g.name, g.met) for g in gates(Card("", 1, (0,)))] == [("effect", False)]


def test_seeds_are_pooled_as_pictures():
    effects = _effects(dopsd=(0.5, 0.9, 0.02))
    effects[1] = replace(effects[1], asked={"concept": Value(0.7, 0, 1)})
    values = pooled(effects, "bars", "dopsd")
    assert values["concept"] == Value(0.6, *wilson(120, 200))


def test_a_card_survives_the_file(tmp_path):
    effects = _effects(base=(0.02, 0.9, 0.02), dopsd=(0.5, 0.9, 0.02), sft=(0.5, 0.7, 0.02))
    card = Card("abc", 10, (0, 1), _rows(), effects)
    card.gates = gates(card)
    write(card, tmp_path)
    assert json.loads((tmp_path / "card.json").read_text())["sha256"] == card.sha256
    text = (tmp_path / "README.md").read_text()
    assert text == markdown(card) and "few-step gap, full" in text
    assert "| bars | dopsd | 0.500 [" in text


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
