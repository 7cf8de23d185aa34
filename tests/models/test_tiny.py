"""The random tiny transformer is not degenerate: everything that a test varies matters to it."""

from __future__ import annotations

from pathlib import Path

import torch

from dopsd.models import ZImage
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from tests.helpers.tiny import LATENT, make_context, random_state


def test_latents_time_context_and_each_lora_module_change_the_output(tiny_base: Path) -> None:
    family = ZImage(str(tiny_base))
    transformer = family.load_transformer(torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *LATENT, generator=generator)
    sigma, context = torch.tensor([0.9, 0.5]), make_context((7, 33), 0)

    def draw(x=latents, s=sigma, c=context) -> torch.Tensor:
        with torch.no_grad():
            return family.velocity(transformer, x, s, c)

    base = draw()
    assert 0.3 < base.std() < 3
    for other in (
        draw(x=latents + 0.1),
        draw(s=sigma - 0.1),
        draw(c=make_context((7, 33), 1)),
    ):
        assert (other - base).abs().mean() > 0.01

    inject(transformer, resolve_targets(transformer, "all-linear", ()), 4, 8, seed=0)
    torch.testing.assert_close(draw(), base)
    parameters = adapter_parameters(transformer, STUDENT)
    weights = random_state(parameters, 0)
    for name, parameter in parameters.items():
        if ".lora_B." not in name:
            continue
        with torch.no_grad():
            parameter.copy_(weights[name])
            assert (draw() - base).abs().max() > 1e-4, name
            parameter.zero_()
