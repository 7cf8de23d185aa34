"""What a micro-batch weighs as it travels."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.models import ZImage
from dopsd.models.lora.layers import STUDENT
from dopsd.models.trained import TrainableParameters
from dopsd.plan.bases import base_of
from dopsd.plan.demand import Demand


def test_a_batch_carries_the_contexts_of_all_its_rollouts() -> None:
    def demand(*overrides: str) -> Demand:
        config = load_config("z_image_turbo_lora", list(overrides))
        return Demand(config, base_of(config))

    alone, both = demand(), demand("data.preservation.class_word=dog")
    student, _ = alone._texts()
    own = student * alone.model.text_width * alone.size
    states = 2 * alone.config.terms * alone._latents()
    assert both.contexts() == alone.contexts() + own
    assert both.batch() == alone.batch() + states + own


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_an_adapter_is_counted_as_it_is_injected(kind: str) -> None:
    config, family = load_config("shapes", [f"lora.kind={kind}"]), ZImage("shapes")
    trained = TrainableParameters(config, family)
    counted, transformer = trained.numel(family.skeleton()), family.skeleton()
    trained.prepare(transformer, (STUDENT,))
    injected = sum(p.numel() for p in trained.parameters(transformer, STUDENT).values())
    assert Demand(config, base_of(config)).trained == counted == injected
