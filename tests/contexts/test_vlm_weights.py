"""Carrying the text encoder's weights into the VLM: complete, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Model, Qwen3VLModel

from dopsd.contexts import vlm_weights
from dopsd.contexts.vlm_weights import load_vlm
from dopsd.errors import ModelError
from dopsd.models.checksum import checksum

NAME = "layers.1.self_attn.q_proj.weight"


@pytest.fixture
def loaded(tiny_base: Path) -> Callable[..., Any]:
    """Loads the tiny VLM with the text encoder of a base."""
    return lambda base, dtype=torch.float32: load_vlm(
        str(tiny_base / "vlm"), str(base), dtype, "cpu"
    )


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


def test_every_tensor_is_carried_and_the_vision_tower_is_its_own(
    loaded: Callable[..., Any], tiny_base: Path
) -> None:
    text = Qwen3Model.from_pretrained(tiny_base / "text_encoder", dtype=torch.float32)
    own = Qwen3VLModel.from_pretrained(tiny_base / "vlm", dtype=torch.float32)
    model = loaded(tiny_base)
    assert checksum(dict(model.language_model.named_parameters())) == checksum(
        dict(text.named_parameters())
    )
    assert checksum(dict(model.visual.named_parameters())) == checksum(
        dict(own.visual.named_parameters())
    )
    before = own.language_model.get_parameter(NAME)
    assert not torch.equal(before, model.language_model.get_parameter(NAME))
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_its_own_language_weights_are_not_read(
    loaded: Callable[..., Any], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    open_file = vlm_weights.safe_open

    @contextmanager
    def counted(path: str, framework: str) -> Iterator[Any]:
        with open_file(path, framework=framework) as shard:
            yield SimpleNamespace(
                keys=shard.keys,
                get_tensor=lambda name: read.append(f"{path}:{name}") or shard.get_tensor(name),
            )

    monkeypatch.setattr(vlm_weights, "safe_open", counted)
    loaded(tiny_base)
    of_vlm = [name for name in read if "/vlm/" in name]
    assert of_vlm and not any("language_model" in name for name in of_vlm)
    assert len(read) == len(set(read))


def test_shards_and_the_prefixes_of_other_savers(loaded: Callable[..., Any], base: Path) -> None:
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
    assert checksum(dict(loaded(base).language_model.named_parameters())) == expected


def test_weights_become_the_models_dtype(loaded: Callable[..., Any], tiny_base: Path) -> None:
    model = loaded(tiny_base, torch.bfloat16).language_model
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
    loaded: Callable[..., Any], base: Path, change: Callable, line: str
) -> None:
    rewrite(base, change)
    with pytest.raises(ModelError, match=f"^model.vlm: .*{line}"):
        loaded(base)


def test_a_folder_without_weights_is_refused(loaded: Callable[..., Any], base: Path) -> None:
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="text_encoder: no safetensors files"):
        loaded(base)


def test_a_model_without_an_image_branch_is_refused(tiny_base: Path) -> None:
    for folder in (tiny_base / "text_encoder", tiny_base / "missing"):
        with pytest.raises(ModelError, match=rf"^model\.vlm: {folder} is no image-text model"):
            load_vlm(str(folder), str(tiny_base), torch.float32, "cpu")
