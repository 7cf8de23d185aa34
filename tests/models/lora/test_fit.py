"""A LoRA file against a base: n of m modules, in every spelling, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dopsd.cli.main import main
from dopsd.errors import ModelError
from dopsd.models import ZImage
from dopsd.models.lora.fit import LoraFit, has_alpha, lora_fit, spelling

RANK = 4
NAMES = ("layers.0.attention.to_q", "layers.1.feed_forward.w2", "noise_refiner.0.attention.to_v")


@pytest.fixture(scope="module")
def skeleton(tiny_base: Path) -> nn.Module:
    return ZImage(str(tiny_base)).skeleton()


def weights(skeleton: nn.Module, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """A and B of modules by diffusers' names without a prefix."""
    torch.manual_seed(0)
    modules = dict(skeleton.named_modules())
    state = {}
    for name in names:
        linear: Any = modules[name]
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, linear.in_features)
        state[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, RANK)
    return state


def diffusers_file(state: dict[str, Tensor]) -> bytes:
    return save({f"transformer.{key}": tensor for key, tensor in state.items()})


def comfy_file(state: dict[str, Tensor]) -> bytes:
    return save({f"diffusion_model.{key}": tensor for key, tensor in state.items()})


def kohya_file(state: dict[str, Tensor], alpha: float = RANK / 2) -> bytes:
    """Names joined by underscores; B is as much larger as alpha makes it smaller again."""
    renamed = {}
    for key, tensor in state.items():
        module, _, part = key.partition(".lora_")
        name = f"lora_unet_{module.replace('.', '_')}"
        if part == "A.weight":
            renamed[f"{name}.lora_down.weight"] = tensor
            renamed[f"{name}.alpha"] = torch.tensor(alpha)
        else:
            renamed[f"{name}.lora_up.weight"] = tensor * RANK / alpha
    return save(renamed)


def fit_of(skeleton: nn.Module, payload: bytes) -> LoraFit:
    return lora_fit(diffusers.ZImagePipeline, skeleton, "a.safetensors", payload)


@pytest.mark.parametrize("make", [diffusers_file, comfy_file, kohya_file])
def test_every_spelling_fits_at_equal_strength(skeleton: nn.Module, make: Any) -> None:
    state = weights(skeleton)
    fit = fit_of(skeleton, make(state))
    assert sorted(fit.fitting) == sorted(f"transformer.{name}" for name in NAMES)
    assert not fit.unfit and fit.ranks == (RANK,)
    assert fit.sentence() == "3 of 3 modules fit the base"
    fit.check("a.safetensors", partial=False)
    for name in NAMES:
        asked = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        loaded = fit.fitting_state()
        prefix = f"transformer.{name}"
        found = loaded[f"{prefix}.lora_B.weight"] @ loaded[f"{prefix}.lora_A.weight"]
        assert torch.allclose(asked, found, atol=1e-5)


def test_what_does_not_fit_is_refused_unless_asked_for(skeleton: nn.Module) -> None:
    state = weights(skeleton)
    state["layers.99.attention.to_q.lora_A.weight"] = torch.randn(RANK, 64)
    state["layers.99.attention.to_q.lora_B.weight"] = torch.randn(64, RANK)
    state[f"{NAMES[0]}.lora_A.weight"] = torch.randn(RANK, 7)  # of another base
    fit = fit_of(skeleton, diffusers_file(state))
    assert (len(fit.fitting), fit.total) == (2, 4)
    with pytest.raises(ModelError, match=r"^a\.safetensors: 2 of 4 modules fit the base \(not "):
        fit.check("a.safetensors", partial=False)
    fit.check("a.safetensors", partial=True)
    assert len(fit.fitting_state()) == 4
    assert not any("layers.99" in key or NAMES[0] in key for key in fit.fitting_state())


def test_nothing_that_fits_is_refused_in_any_case(skeleton: nn.Module) -> None:
    peft = save({f"base_model.model.{key}": t for key, t in weights(skeleton).items()})
    with pytest.raises(ModelError, match="none of its keys fits the base"):
        fit_of(skeleton, peft).check("a.safetensors", partial=True)
    state = weights(skeleton, NAMES[:1])
    state[f"{NAMES[0]}.lora_B.weight"] = torch.randn(7, RANK)
    with pytest.raises(ModelError, match="other shapes than the base's layers"):
        fit_of(skeleton, diffusers_file(state)).check("a.safetensors", partial=True)


@pytest.mark.parametrize(
    "payload", [b"", b"no safetensors", save({"x.lora_down.weight": torch.zeros(1)})]
)
def test_what_is_no_lora_is_one_line(skeleton: nn.Module, payload: bytes) -> None:
    with pytest.raises(ModelError, match=r"^a\.safetensors: "):
        fit_of(skeleton, payload).check("a.safetensors", partial=True)


def test_spellings_are_named(skeleton: nn.Module, tmp_path: Path) -> None:
    state = weights(skeleton)
    assert spelling(kohya_file(state)).startswith("kohya's")
    assert spelling(comfy_file(state)).startswith("ComfyUI's")
    assert spelling(diffusers_file(state)).startswith("diffusers'")
    assert has_alpha(kohya_file(state)) and not has_alpha(diffusers_file(state))


def test_the_command_says_n_of_m(
    tiny_base: Path, skeleton: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = weights(skeleton)
    file = tmp_path / "a.safetensors"
    command = ["lora", "check", str(file), "--base", str(tiny_base)]
    file.write_bytes(kohya_file(state))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "3 modules of rank 4; keys are kohya's (lora_unet_...); alphas stand beside" in said
    assert "3 of 3 modules fit the base" in said
    state["layers.99.attention.to_q.lora_A.weight"] = torch.randn(RANK, 64)
    state["layers.99.attention.to_q.lora_B.weight"] = torch.randn(64, RANK)
    file.write_bytes(diffusers_file(state))
    assert main(command) == 1
    assert "3 of 4 modules fit the base (not transformer.layers.99" in capsys.readouterr().err
    assert main(["lora", "check", str(tmp_path / "none.safetensors")]) == 1
    assert "no such LoRA file" in capsys.readouterr().err
