"""The card's arithmetic: gates from rows, and back from the file."""

from __future__ import annotations

import json
from dataclasses import replace

from typer.testing import CliRunner

from dopsd.cli import shapes as shapes_cli
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


def test_the_command_line_renders_a_concept_and_names_a_wrong_one(tmp_path):
    runner = CliRunner()
    done = runner.invoke(shapes_cli.app, ["concept", "ring", str(tmp_path / "set"), "--count", "3"])
    assert done.exit_code == 0 and (tmp_path / "set" / "data.jsonl").is_file()
    wrong = runner.invoke(shapes_cli.app, ["concept", "dots", str(tmp_path / "other")])
    assert wrong.exit_code != 0 and "bars, ring" in str(wrong.exception)
