"""Tables and intervals from scores whose answer is known."""

from __future__ import annotations

import json
import math

import pytest

from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.results import summarize
from dopsd.evaluation.spec import BASE, EvaluatedModel
from dopsd.intervals import bootstrap, mean, wilson

COLUMNS = {"hit": Column("a hit", rate=True), "far": Column("a distance", higher_is_better=False)}
MODELS = (
    EvaluatedModel(BASE),
    EvaluatedModel("cat", ("cat.safetensors",)),
    EvaluatedModel("dog", ("dog.safetensors",)),
    EvaluatedModel("cat+dog", ("cat.safetensors", "dog.safetensors")),
)


def scores(model, group, values, column="hit", seeds=1, prior=False):
    return [
        ImageScores(model, 4, group, prior, f"prompt {n // seeds}", n % seeds, {column: value})
        for n, value in enumerate(values)
    ]


def table(found, missing=None):
    return summarize(found, MODELS, COLUMNS, missing or {}, {"seed": 0})


def test_rates_have_wilson_intervals_and_means_bootstrap_ones():
    far = [0.1, 0.4, 0.2, 0.9]
    found = scores(BASE, "cat", [1, 0, 1, 1]) + scores("cat", "cat", far, "far")
    results = table(found)
    rate = results.row(BASE, "cat").values["hit"]
    assert (rate.value, rate.low, rate.high) == (0.75, *wilson(3, 4))
    distance = results.row("cat", "cat").values["far"]
    assert (distance.value, distance.low, distance.high) == (mean(far), *bootstrap(far))
    assert "far" not in results.rows[0].values


def test_pictures_of_one_prompt_count_as_one_draw():
    # Four seeds of two prompts that always agree tell no more than one seed of each.
    results = table(scores(BASE, "cat", [1, 1, 1, 1, 0, 0, 0, 0], seeds=4))
    (row,) = results.rows
    assert (row.prompts, row.pictures) == (2, 8)
    value = row.values["hit"]
    assert (value.low, value.value, value.high) == pytest.approx((0.095, 0.5, 0.905), abs=1e-3)


def test_a_rate_of_one_is_not_certain_whatever_the_seeds():
    value = table(scores(BASE, "cat", [1] * 8, seeds=2)).row(BASE, "cat").values["hit"]
    assert (value.value, value.high) == (1, 1)
    assert value.low == pytest.approx(wilson(4, 4)[0])


def test_retention_is_relative_to_the_base_on_the_same_prompts():
    base, tuned = [0.8, 0.4, 0.6, 0.2], [0.4, 0.2, 0.3, 0.1]
    found = [
        *scores(BASE, "prior", base, "far", prior=True),
        *scores("cat", "prior", tuned, "far", prior=True),
    ]
    (relative,) = table(found).relatives
    assert (relative.model, relative.against, relative.column) == ("cat", BASE, "far")
    # Half of the base's on every prompt: the pairing leaves no doubt, however they vary.
    assert relative.ratio.low == pytest.approx(0.5)
    assert relative.ratio.value == pytest.approx(0.5)
    assert relative.ratio.high == pytest.approx(0.5)


def test_loras_together_are_relative_to_each_alone():
    found = [
        *scores(BASE, "cat", [0, 0, 0, 0]),
        *scores("cat", "cat", [1, 1, 1, 1]),
        *scores("cat+dog", "cat", [1, 1, 1, 0]),
        *scores("dog", "dog", [1, 1, 0, 0]),
        *scores("cat+dog", "dog", [1, 1, 1, 1]),
    ]
    relatives = {(r.model, r.against, r.group): r.ratio.value for r in table(found).relatives}
    assert relatives == {("cat+dog", "cat", "cat"): 0.75, ("cat+dog", "dog", "dog"): 2.0}


def test_nothing_is_divided_by_zero():
    found = [
        *scores(BASE, "prior", [0, 0], prior=True),
        *scores("cat", "prior", [1, 0], prior=True),
    ]
    assert table(found).relatives == []


def test_a_ratio_without_a_bound_is_null_in_json_and_inf_in_the_table():
    # Draws of the bootstrap that miss the base's only hit divide by zero.
    found = [
        *scores(BASE, "prior", [1, 0, 0], prior=True),
        *scores("cat", "prior", [1, 1, 1], prior=True),
    ]
    results = table(found)
    (relative,) = results.relatives
    assert (relative.ratio.value, relative.ratio.high) == (3, math.inf)

    def refuse(constant):
        raise ValueError(constant)

    values = json.loads(results.to_json(), parse_constant=refuse)
    assert values["relatives"][0]["ratio"]["high"] is None
    assert f"| 3.000 [{relative.ratio.low:.3f}, inf] |" in results.markdown()


def test_the_table_says_what_is_missing():
    found = scores(BASE, "cat", [1, 0]) + scores("cat", "cat|dog", [1, 1])
    results = table(found, {"dino": "dino: nobody/nothing is not available (OSError: no network)"})
    text = results.markdown()
    assert "| base | 4 | cat (2) | 2 | 0.500 [0.095, 0.905] |" in text
    assert "| cat | 4 | cat\\|dog (2) | 2 | 1.000 [0.342, 1.000] |" in text
    assert "hit ↑" in text and "far" not in text
    assert "Not measured:\n\n- dino: nobody/nothing is not available" in text
