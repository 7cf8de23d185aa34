"""Recipes against the planner: what their heads say, and how their GPUs are divided."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.config.recipes import recipe_file, recipes
from dopsd.plan import comment, make_plan
from dopsd.plan.cards import CARDS
from dopsd.plan.split import BALANCED

ON_GPUS = [name for name in recipes() if name != "shapes"]


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_head_says_what_is_planned(name: str) -> None:
    with open(recipe_file(name)) as file:
        assert comment(make_plan(load_config(name))) in file.read(), (
            f"its planned lines should be those of: dopsd plan {name} --comment"
        )


@pytest.mark.parametrize("name", ON_GPUS)
def test_eight_gpus_are_balanced_and_fit(name: str) -> None:
    plan = make_plan(load_config(name))
    assert plan.shipped.gpus == 8
    assert plan.shipped.spread <= BALANCED
    assert plan.shipped.fits(CARDS["h100-80"])


@pytest.mark.parametrize("name", ON_GPUS)
def test_no_split_of_the_same_kind_is_much_faster(name: str) -> None:
    plan = make_plan(load_config(name))
    for split in plan.best:
        if split.kind == plan.shipped.kind:
            shipped = plan.shipped.images_per_gpu_second
            assert split.images_per_gpu_second <= shipped * 1.15
