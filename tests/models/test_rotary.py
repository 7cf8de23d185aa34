"""The rotary embedding in real numbers is the one in complex numbers, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dopsd.models import ZImage
from dopsd.models.attention import attention_of, set_attention
from dopsd.models.rotary import RealRotaryProcessor, rotated, use_real_rotary
from tests.helpers.tiny import LATENT, make_context, make_transformer
from tests.helpers.tiny_flux2 import make_flux2_transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_are_turned_as_complex_numbers_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 3, 8, generator=generator).to(dtype)
    angles = torch.randn(2, 5, 4, generator=generator)
    turns = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(values.float().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * turns.unsqueeze(2)).flatten(-2).to(dtype)
    found = rotated(values, torch.view_as_real(turns))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


def velocity_and_gradients(transformer: torch.nn.Module) -> list[Tensor]:
    latents = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((2,), 0.7)
    velocity = ZImage.velocity(None, transformer, latents, sigma, make_context((5, 40), 0))
    loss = velocity.square().mean()
    return [velocity.detach(), *torch.autograd.grad(loss, list(transformer.layers.parameters()))]


def test_the_transformer_computes_the_same_for_rows_of_unequal_length() -> None:
    transformer = make_transformer().requires_grad_(True)
    set_attention(transformer, "_native_math")
    expected = velocity_and_gradients(transformer)
    use_real_rotary(transformer)
    processors = {type(m.processor) for m in transformer.modules() if hasattr(m, "processor")}
    assert processors == {RealRotaryProcessor}
    assert attention_of(transformer) == "_native_math"
    torch.testing.assert_close(velocity_and_gradients(transformer), expected)


def test_another_transformer_stays_as_it_is() -> None:
    transformer = make_flux2_transformer()
    before = {name: type(m.processor) for name, m in named(transformer)}
    use_real_rotary(transformer)
    assert before and {name: type(m.processor) for name, m in named(transformer)} == before


def named(transformer: torch.nn.Module):
    return [(name, m) for name, m in transformer.named_modules() if hasattr(m, "processor")]
