"""Recipes against the planner: what their heads say, and how their GPUs are divided."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.config.recipes import recipe_file, recipes
from dopsd.plan import comment, make_plan
from dopsd.plan.cards import CARDS
from dopsd.plan.split import BALANCED

ON_GPUS = [name for name in recipes() if not name.startswith("shapes")]
LIBRARIES = ["z_image_turbo_library"]
ONE_CARD = {"z_image_turbo_lora_16gb": "4060ti-16", "z_image_turbo_lora_24gb": "3090-24"}
EIGHT = [name for name in ON_GPUS if name not in (*ONE_CARD, *LIBRARIES)]


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_head_says_what_is_planned(name: str) -> None:
    with open(recipe_file(name)) as file:
        assert comment(make_plan(load_config(name))) in file.read(), (
            f"its planned lines should be those of: dopsd plan {name} --comment"
        )


@pytest.mark.parametrize("name", ONE_CARD)
def test_one_card_holds_the_run_and_the_encoder_before_it(name: str) -> None:
    config, card = load_config(name), CARDS[ONE_CARD[name]]
    plan = make_plan(config, card)
    assert plan.shipped.gpus == 1 and plan.shipped.kind == "fused"
    assert plan.misfits(card.usable, card.name) == []
    assert plan.total(plan.demand.encoder()) < card.usable
    whole = make_plan(load_config(name, ["model.quantize=none"]), card)
    saved = whole.roles[0].parts["weights"] - plan.roles[0].parts["weights"]
    assert saved > 0.45 * whole.roles[0].parts["weights"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_worker_of_a_library_fits_one_card(name: str) -> None:
    plan = make_plan(load_config(name))
    assert plan.shipped.gpus == 1 and plan.shipped.kind == "fused"
    assert plan.shipped.fits(CARDS["h100-80"])


@pytest.mark.parametrize("name", EIGHT)
def test_eight_gpus_are_balanced_and_fit(name: str) -> None:
    plan = make_plan(load_config(name))
    assert plan.shipped.gpus == 8
    assert plan.shipped.spread <= BALANCED
    assert plan.shipped.fits(CARDS["h100-80"])


@pytest.mark.parametrize("name", EIGHT)
def test_no_split_of_the_same_kind_is_much_faster(name: str) -> None:
    plan = make_plan(load_config(name))
    for split in plan.best:
        if split.kind == plan.shipped.kind:
            shipped = plan.shipped.images_per_gpu_second
            assert split.images_per_gpu_second <= shipped * 1.15
