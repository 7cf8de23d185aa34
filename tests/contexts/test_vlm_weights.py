"""Carrying the text encoder's weights into the VLM: complete, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Model

from dopsd.contexts.vlm_weights import carry_text_encoder, load_vlm
from dopsd.errors import ModelError
from dopsd.models.lora import checksum

NAME = "layers.1.self_attn.q_proj.weight"


@pytest.fixture
def language_model(tiny_base: Path) -> nn.Module:
    return load_vlm(str(tiny_base / "vlm"), torch.float32, "cpu").language_model


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy whose text encoder may be spoilt."""
    shutil.copytree(tiny_base / "text_encoder", tmp_path / "text_encoder")
    return tmp_path


def rewrite(base: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = base / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_every_tensor_is_carried(language_model: nn.Module, base: Path) -> None:
    text = Qwen3Model.from_pretrained(base / "text_encoder", dtype=torch.float32)
    before = {name: p.clone() for name, p in language_model.named_parameters()}
    count = carry_text_encoder(language_model, str(base), None)
    expected = dict(text.named_parameters())
    carried = dict(language_model.named_parameters())
    assert count == len(expected) == len(carried)
    for name, parameter in expected.items():
        assert torch.equal(carried[name], parameter)
    assert not torch.equal(before[NAME], carried[NAME])


def test_shards_and_the_prefixes_of_other_savers(language_model: nn.Module, base: Path) -> None:
    """As Qwen3ForCausalLM saves: `model.` in front, a head, and more than one file."""
    expected = checksum(load_file(base / "text_encoder" / "model.safetensors"))
    file = base / "text_encoder" / "model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["lm_head.weight"] = torch.zeros(3)
    file.unlink()
    index = {}
    for part in (0, 1):
        shard = f"model-0000{part + 1}-of-00002.safetensors"
        some = dict(list(tensors.items())[part::2])
        save_file(some, base / "text_encoder" / shard)
        index.update(dict.fromkeys(some, shard))
    (base / "text_encoder" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    carry_text_encoder(language_model, str(base), None)
    assert checksum(dict(language_model.named_parameters())) == expected


def test_weights_become_the_models_dtype(tiny_base: Path) -> None:
    model = load_vlm(str(tiny_base / "vlm"), torch.bfloat16, "cpu").language_model
    carry_text_encoder(model, str(tiny_base), None)
    tensors = load_file(tiny_base / "text_encoder" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, tensors[name].bfloat16())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop(NAME), rf"has no {NAME} \(1 tensors"),
        (lambda t: t.update({NAME: torch.zeros(2, 2)}), rf"{NAME} is \[64, 64\].*\[2, 2\] in the"),
        (lambda t: t.update({"layers.9.x.weight": torch.zeros(1)}), r"layers\.9\.x\.weight is not"),
    ],
    ids=["missing", "another shape", "unknown"],
)
def test_a_misfit_is_refused_by_name(
    language_model: nn.Module, base: Path, change: Callable, line: str
) -> None:
    rewrite(base, change)
    with pytest.raises(ModelError, match=f"^model.vlm: .*{line}"):
        carry_text_encoder(language_model, str(base), None)


def test_a_folder_without_weights_is_refused(language_model: nn.Module, base: Path) -> None:
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="text_encoder: no safetensors files"):
        carry_text_encoder(language_model, str(base), None)


def test_a_model_without_an_image_branch_is_refused(tiny_base: Path) -> None:
    for folder in (tiny_base / "text_encoder", tiny_base / "missing"):
        with pytest.raises(ModelError, match=rf"^model\.vlm: {folder} is no image-text model"):
            load_vlm(str(folder), torch.float32, "cpu")
