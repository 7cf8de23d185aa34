"""The plain loops of the effect: what they train on, and that a seed decides everything."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from dopsd.experiments.shapes_base import fast
from dopsd.experiments.shapes_card import card as cards
from dopsd.experiments.shapes_card import effect
from dopsd.experiments.shapes_card.effect_data import Batches
from dopsd.shapes import concepts, weights_path

PLAIN = fast.Forwards()
SHORT = effect.Budget(steps=2, batch=2, rank=4, prior=4)


@pytest.fixture(scope="module")
def model():
    return cards.load(weights_path())


def lora(transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in transformer.named_parameters() if "lora_B" in name}


def test_a_seed_decides_the_lora_and_the_base_stays(model):
    before = {n: p.detach().clone() for n, p in model.transformers["turbo"].named_parameters()}
    one, two, other = (
        lora(effect.train_lora(model, "bars", "dopsd", seed, SHORT, PLAIN)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    after = dict(model.transformers["turbo"].named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_objectives_differ(model):
    loras = [
        lora(effect.train_lora(model, "ring", name, 0, SHORT, PLAIN))
        for name in effect.ALL_OBJECTIVES
    ]
    for one, other in combinations(loras, 2):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_comparison_trains_on_the_captions_that_are_asked_for(model, monkeypatch):
    given = concepts.captions_of
    monkeypatch.setattr(concepts, "captions_of", lambda *scene: {"short": given(*scene)["short"]})
    budget, said = replace(SHORT, captions="short"), []
    objectives = ["off_policy", "dopsd"]
    found = effect.compare(model, objectives, ["ring"], (0,), budget, 2, said.append, PLAIN)
    assert [each.objective for each in found] == objectives
    assert len(said) == 2 and all(line.startswith("ring, ") for line in said)
    with pytest.raises(KeyError, match="medium"):
        Batches(model, "ring", 0, prior=0, avoid=(), captions="medium")


@pytest.mark.parametrize(
    "forwards",
    [PLAIN, pytest.param(None, marks=pytest.mark.nightly)],
    ids=["plain", "compiled-for-a-minute"],
)
def test_a_measurement_judges_base_and_both_loras(model, forwards):
    said: list[str] = []
    found = effect.measure(model, (3,), SHORT, samples=4, say=said.append, forwards=forwards)
    rows = [("base", False), *(("dopsd", b) for b in (True, False)), ("sft", True), ("sft", False)]
    assert [(e.concept, e.objective, e.prior_samples) for e in found] == [
        (concept, *row) for concept in ("bars", "ring") for row in rows
    ]
    assert len(said) == 10 and all(e.count == 4 and e.seed == 3 for e in found)
    assert {"concept", "ok"} <= found[0].asked.keys() and "concept" not in found[0].prior
    assert found[0].prior["leaked"].value == 0.0, "the base draws it for no word"


def test_no_prior_prompt_is_trained_on_and_judged():
    judged = {prompt.text for prompt in concepts.prior_prompts(effect.SAMPLES, 1000)}
    trained = [prompt.text for prompt in concepts.distinct_prior_prompts(250, 0, judged)]
    assert len(set(trained)) == 250 and not judged & set(trained)


def test_half_of_a_batch_is_the_base_s_own(model):
    batches = Batches(model, "bars", 0, prior=6, avoid=())
    batch = batches.draw(5)
    own = batches.clean[:12]
    from_data = [bool((own == sample).flatten(1).all(1).any()) for sample in batch.clean]
    assert from_data == [True, True, True, False, False]
    assert len(Batches(model, "bars", 0, prior=0, avoid=()).draw(5).clean) == 5
