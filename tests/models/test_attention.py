"""Attention backends: rows of unequal length, and what may train."""

from __future__ import annotations

from typing import Any

import diffusers.models.attention_dispatch as dispatch
import pytest
import torch
from torch import Tensor

from dopsd.errors import ModelError
from dopsd.models import ZImage
from dopsd.models.attention import (
    TRAINABLE,
    attention_of,
    check_attention,
    set_attention,
    takes_masks,
)
from tests.helpers.tiny import LATENT, make_context, make_transformer

BACKENDS = [backend.value for backend in dispatch.AttentionBackendName]


def flash(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    parts = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)


@pytest.fixture
def flash_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_check_attention_backend_requirements", lambda name: None)
    monkeypatch.setattr(dispatch, "flash_attn_func", flash)
    active = dispatch._AttentionBackendRegistry._active_backend
    monkeypatch.setattr(dispatch._AttentionBackendRegistry, "_active_backend", active)


@pytest.mark.usefixtures("flash_here")
def test_rows_of_unequal_length_give_what_they_give_where_masks_are_taken() -> None:
    context, sigma = make_context((5, 40, 6), 0), torch.tensor([0.9, 0.7, 0.5])
    latents = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(0))
    results = []
    for backend in ("native", "flash"):
        transformer = make_transformer()
        transformer.set_attention_backend(backend)
        with torch.no_grad():
            results.append(ZImage.velocity(None, transformer, latents, sigma, context))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["flash", "_flash_3", "_native_flash", "sage", "flash_4_hub"])
def test_backends_that_refuse_a_mask(name: str) -> None:
    assert not takes_masks(name)


def test_what_may_train_is_known_to_diffusers_and_the_rest_is_refused() -> None:
    assert set(TRAINABLE) <= set(BACKENDS)
    for name in BACKENDS:
        if name in TRAINABLE:
            check_attention(name, "learner.attention", trains=True)
        else:
            check_attention(name)
            with pytest.raises(ModelError, match=f"^learner.attention: {name!r} has no backward"):
                check_attention(name, "learner.attention", trains=True)


def test_a_backend_is_that_of_one_model_and_of_no_other() -> None:
    before = dispatch._AttentionBackendRegistry.get_active_backend()
    transformer = make_transformer()
    set_attention(transformer, "_native_math")
    assert attention_of(transformer) == "_native_math"
    assert attention_of(make_transformer()) is None
    assert dispatch._AttentionBackendRegistry.get_active_backend() == before
