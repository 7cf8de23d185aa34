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
    student, _ = alone._texts()
    own = student * alone.model.text_width * alone.size
    states = 2 * alone.config.terms * alone._latents()
    assert both.contexts() == alone.contexts() + own
    assert both.batch() == alone.batch() + states + own
