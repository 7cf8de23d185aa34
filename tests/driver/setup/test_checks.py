"""Options that the config alone cannot judge: one line before any cluster starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from dopsd.driver.setup.checks import check_options
from dopsd.errors import ConfigError, ModelError
from dopsd.learner.zero.engine import read_preset
from dopsd.models import ZImage
from tests.helpers.tiny import make_config

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def test_dora_is_refused_under_zero_3_alone() -> None:
    config = make_config("unused", lora={"dora": True})
    check_options(config, read_preset("zero2"))
    with pytest.raises(ConfigError, match=r"^lora.dora: true with ZeRO stage 3, allowed: stage 1"):
        check_options(config, read_preset("zero3"))


def test_compiled_learners_are_refused_under_zero_3_alone() -> None:
    config = make_config("unused", learner={"compile": True})
    check_options(config, read_preset("zero2"))
    with pytest.raises(ConfigError, match=r"^learner.compile: true with ZeRO stage 3, allowed: st"):
        check_options(config, read_preset("zero3"))


def test_eight_bit_needs_its_package_and_no_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("unused", learner={"optimizer": "adamw8bit"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^learner.optimizer: .* pip install bitsandbytes"):
        check_options(config, read_preset("zero1"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_options(config, read_preset("zero1"))
    with pytest.raises(ConfigError, match=r"^learner.optimizer: adamw8bit with offload_optimizer"):
        check_options(config, OFFLOAD)


def test_an_unknown_attention_backend_is_one_line() -> None:
    config = make_config("unused", model={"attention": "flashy"})
    with pytest.raises(
        ModelError, match=r"^model.attention: 'flashy', allowed: .* native"
    ) as error:
        check_options(config, read_preset("zero1"))
    assert "\n" not in str(error.value)


def test_attention_reaches_roles_and_pipelines(tiny_base: Path) -> None:
    family = ZImage(str(tiny_base))
    for load in (
        family.load_transformer,
        lambda *a, **k: family.load_pipeline(*a, **k).transformer,
    ):
        model = load(torch.float32, "cpu", attention="_native_math")
        backends = {
            module.processor._attention_backend
            for module in model.modules()
            if hasattr(module, "processor")
        }
        assert {str(getattr(each, "value", each)) for each in backends} == {"_native_math"}
        # Known, but not here: no such package, or no such device.
        with pytest.raises(ModelError, match=r"^model.attention: 'flash' cannot be used here: "):
            load(torch.float32, "cpu", attention="flash")
