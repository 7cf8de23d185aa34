"""What a micro-batch weighs as it travels."""

from __future__ import annotations

from dopsd.config import load_config
from dopsd.plan.bases import base_of
from dopsd.plan.demand import Demand


def test_a_batch_carries_the_contexts_of_all_its_rollouts() -> None:
    def demand(*overrides: str) -> Demand:
        config = load_config("z_image_turbo_lora", list(overrides))
        return Demand(config, base_of(config))

    alone, both = demand(), demand("data.preservation.class_word=dog")
    student, teacher = alone._texts()
    token = alone.model.text_width * alone.size
    assert teacher > 2 * student, "else half of all contexts would do"
    states = 2 * alone.config.terms * alone._latents()
    assert alone.batch() == states + student * token
    assert both.batch() == 2 * alone.batch()
    assert both.contexts() == alone.contexts() + student * token
