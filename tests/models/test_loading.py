"""Where a model is loaded to: straight to its device, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from dopsd.models import ZImage

KINDS = {"load_transformer": "ZImageTransformer2DModel", "load_vae": "AutoencoderKL"}


@pytest.mark.parametrize("part", KINDS)
@pytest.mark.parametrize(("device", "mapped"), [("meta", {"": "meta"}), ("cpu", None)])
def test_a_gpus_model_is_never_whole_on_the_host(
    part: str, device: str, mapped: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def load(*_: Any, **options: Any) -> nn.Module:
        asked.append(options)
        return nn.Module()

    monkeypatch.setattr(getattr(diffusers, KINDS[part]), "from_pretrained", load)
    getattr(ZImage(str(tiny_base)), part)(torch.bfloat16, device)
    assert asked[0].get("device_map") == mapped
    assert asked[0]["dtype"] == torch.bfloat16
