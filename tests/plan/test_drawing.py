"""What drawing own prompts while training needs of a rollout worker."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.plan.encoder import VAE_WEIGHTS
from dopsd.plan.plan import make_plan


@pytest.mark.parametrize("role", ["rollout", "pool"])
def test_the_autoencoder_is_counted_where_own_prompts_are_drawn(role):
    def needs(prompts: str):
        words = [f"preview.prompts={prompts}", "data.pixel_area=4194304", "learner.micro_batch=1"]
        return getattr(
            make_plan(load_config("configs/krea2_turbo_vlm_lora.yaml", words)).demand, role
        )()

    without, drawing = needs("[]"), needs("[a cat]")
    assert drawing.memory - without.memory >= 2 * VAE_WEIGHTS
    assert drawing.parts["activations"] >= max(without.parts["activations"], 5 * 2**30)
    assert "autoencoder" not in without.parts
