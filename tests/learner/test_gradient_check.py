"""A tensor that no gradient reaches is named, whatever cut it off."""

from __future__ import annotations

from typing import Any

import diffusers.models.attention_dispatch as dispatch
import pytest
import torch
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.learner.gradient_check import GradientCheck
from dopsd.learner.student import Student, build_student
from dopsd.models import ZImage
from tests.helpers.tiny import LATENT, make_config, make_context


def sage(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """As SageAttention's kernel: no formula for autograd."""
    with torch.no_grad():
        parts = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)


def student(base: Any) -> Student:
    config = make_config(base, learner={"gradient_checkpointing": True})
    return build_student(config, ZImage(str(base)), "cpu", with_teacher=False)


def train(module: Student) -> None:
    sigma, context = torch.tensor([0.9]), make_context((12,), 0).tensors
    module(torch.randn(1, *LATENT), sigma, context).square().mean().backward()


def check(module: Student) -> GradientCheck:
    return GradientCheck(module.trained.parameters(module.transformer, "student"))


def test_a_backend_with_a_backward_passes(tiny_base: Any) -> None:
    module = student(tiny_base)
    checked = check(module)
    train(module)
    checked.finish()


def test_attention_without_a_backward_is_refused(
    tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = student(tiny_base)
    monkeypatch.setattr(dispatch, "_check_attention_backend_requirements", lambda name: None)
    monkeypatch.setattr(dispatch, "sageattn", sage)
    registry = dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    module.transformer.set_attention_backend("sage")
    checked = check(module)
    train(module)
    with pytest.raises(ModelError, match=r"to_[qkv]\.lora_A.* got no gradient in the first step"):
        checked.finish()


def test_the_environment_names_no_backend_for_what_trains(
    tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", dispatch.AttentionBackendName.SAGE)
    backends = {
        module.processor._attention_backend
        for module in student(tiny_base).modules()
        if hasattr(module, "processor")
    }
    assert backends == {dispatch.AttentionBackendName.NATIVE}


def test_a_zero_gradient_of_one_lora_b_is_none_and_of_all_is_an_agreement() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    named = {"x.lora_B.weight": first, "y.lora_B.weight": second}
    checked = GradientCheck(named)
    (first.sum() + 0 * second.sum()).backward()
    with pytest.raises(ModelError, match=r"^y\.lora_B\.weight of 2 trained tensors"):
        checked.finish()
    checked = GradientCheck(named)
    (0 * first.sum() + 0 * second.sum()).backward()
    checked.finish()
