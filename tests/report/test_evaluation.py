"""The steps kept view, on a page of its own and on the run's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dopsd.evaluation.diversity import Diversity
from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.results import Results, summarize
from dopsd.evaluation.spec import BASE, EvaluatedModel
from dopsd.intervals import Value
from dopsd.report.evaluation import evaluation_page
from dopsd.report.page import EVALUATION, write_report
from tests.helpers.browser import open_page
from tests.report.test_page import HOSTILE, folder  # noqa: F401


def results(*tuned: str, steps: tuple[int, ...] = (4, 30)) -> Results:
    """``tuned``: models that blur at 4 steps."""
    models = [EvaluatedModel(name) for name in (BASE, *tuned)]
    scores = [
        ImageScores(
            model.name, number, "g", prior, f"{prompt}", 0,
            {"sharpness": (1 + prompt / 9) * (0.3 if model.name != BASE and number == 4 else 1)},
        )
        for model in models
        for number in steps
        for prior in (True, False)
        for prompt in range(4)
    ]  # fmt: skip
    found = summarize(scores, models, {"sharpness": Column("sharp")}, {}, {})
    third = Value(0.3, 0.2, 0.4)
    found.diversity = [Diversity(n, 4, "g", "latent", 4, 2, third, third) for n in tuned]
    return found


def page(found: Results) -> str:
    return evaluation_page(found.to_json(), found.markdown(), "out/eval")


def test_the_page_has_verdicts_curves_and_diversity_and_no_text_becomes_markup(tmp_path):
    path = tmp_path / "results.html"
    path.write_text(page(results(HOSTILE)))
    dom, console = open_page(path)
    assert console == [] and "owned" not in dom[: dom.index("</title>")]
    assert dom.count('<p class="problem">') == 2 and "few steps are LOST" in dom
    titles = re.findall(r"<figcaption>([^<]+) <small>([^<]+)<", dom)
    assert titles == [
        (f"sharpness, {prompts}", unit)
        for prompts in ("known to the base", "other prompts")
        for unit in ("x base, by sampler steps", "by sampler steps")
    ]
    assert "<td>0.300 [0.200, 0.400]</td>" in dom and "<pre>| model | steps |" in dom


def test_many_models_share_the_colours_in_several_charts():
    charts = re.findall(r"<figure.*?</figure>", page(results(*"abcde")), re.DOTALL)
    keys = [re.findall(r'<i class="(c\d)"></i>([^<]+)<', chart) for chart in charts[:3:2]]
    assert keys == [
        [("c0", "base"), ("c1", "a"), ("c2", "b"), ("c3", "c")],
        [("c0", "base"), ("c1", "d"), ("c2", "e")],
    ]


def test_one_number_of_steps_says_how_to_get_the_view():
    found = results("a", steps=(4,))
    found.diversity = []
    assert "--steps-kept draws with 2, 4, 8 and 30" in page(found)


def test_the_run_page_shows_the_evaluation_in_its_folder(folder: Path):  # noqa: F811
    assert "--steps-kept --out" in Path(write_report(str(folder))).read_text()
    path = folder / EVALUATION
    path.parent.mkdir()
    path.write_text(results("cat").to_json())
    text = Path(write_report(str(folder))).read_text()
    assert "cat, prompts of what the base knows: at 4 steps 0.30" in text
    assert 'aria-label="sharpness, other prompts by step"' in text


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps({"steps_kept": {"curves": [{"model": 1}]}}), "null"]
)
def test_a_file_that_is_no_evaluation_costs_no_page(folder: Path, content: str):  # noqa: F811
    path = folder / EVALUATION
    path.parent.mkdir()
    path.write_text(content)
    text = Path(write_report(str(folder))).read_text()
    assert "results.json" in text and "<h2>Trajectories</h2>" in text
