"""The exported transformer folder: stock diffusers loads it and draws what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dopsd.cli.main import main
from dopsd.errors import ModelError
from dopsd.evaluation.generate import generate, load_modules
from dopsd.export import modules_file, write_transformer
from dopsd.models import FAMILIES
from dopsd.models.families.family import Family
from dopsd.policy.buckets import cut
from tests.helpers.tiny import random_state


def trained(family: Family) -> tuple[Any, dict[str, torch.Tensor]]:
    """A transformer with other weights than the base's, and those weights."""
    transformer = family.load_transformer(torch.float32, "cpu")
    own = dict(transformer.named_parameters())
    state = {name: own[name] + change for name, change in random_state(own, 3).items()}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    return transformer, state


def export(family: Family, state: dict[str, torch.Tensor], folder: Path, limit: int) -> list:
    buckets = cut({name: tensor.numel() * 4 for name, tensor in state.items()}, limit)

    def write(name: str, payload: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(payload)

    shards = ({name: state[name].detach() for name in names} for names in buckets)
    config = family.part_config("transformer")
    metadata = {"dopsd.base": "tiny"}
    write_transformer(write, "transformer", config, shards, len(buckets), metadata)
    return buckets


@pytest.mark.parametrize("name", ["z_image", "flux2_klein"])
@pytest.mark.parametrize("limit", [2**18, 2**30], ids=["shards", "one-file"])
def test_stock_diffusers_draws_what_was_trained(
    name: str, limit: int, tiny_base: Path, tiny_flux2: Path, tmp_path: Path
) -> None:
    base = {"z_image": tiny_base, "flux2_klein": tiny_flux2}[name]
    family = FAMILIES[name](str(base))
    transformer, state = trained(family)
    buckets = export(family, state, tmp_path, limit)
    folder = tmp_path / "transformer"
    transformer.save_pretrained(tmp_path / "stock")
    files = {path.name for path in folder.iterdir()}
    if limit == 2**30:
        assert files == {path.name for path in (tmp_path / "stock").iterdir()}
    else:
        assert len(buckets) > 2 and len(files) == len(buckets) + 2
    saved = {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}
    stock = load_file(tmp_path / "stock" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == stock.keys()
    assert all(torch.equal(saved[name], stock[name]) for name in stock)
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as file:
        assert file.metadata() == {"format": "pt", "dopsd.base": "tiny"}

    pipeline = family.load_pipeline(torch.float32, "cpu")
    options: tuple[Any, ...] = (None, 2, 32, 48, 0, "float32", "cpu")
    (before,) = generate(family, ["a cat"], *options)
    (drawn,) = generate(family, ["a cat"], *options, transformer=str(folder))
    pipeline.transformer = transformer
    expected = pipeline(
        prompt=["a cat"],
        height=32,
        width=48,
        num_inference_steps=2,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    assert not np.array_equal(np.asarray(drawn), np.asarray(before))


def test_another_familys_transformer_is_refused(
    tiny_base: Path, tiny_flux2: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["generate", "a cat", "--base", str(tiny_base), "--out", str(tmp_path)]
    command += ["--height", "32", "--width", "32"]
    assert main([*command, "--transformer", str(tiny_flux2 / "transformer")]) == 1
    assert "found Flux2Transformer2DModel, expected a folder with a ZImage" in (
        capsys.readouterr().err
    )
    assert main([*command, "--transformer", str(tmp_path)]) == 1
    assert "found nothing, expected" in capsys.readouterr().err


def test_modules_beside_a_lora_load_exactly_or_not_at_all(tiny_base: Path) -> None:
    family = FAMILIES["z_image"](str(tiny_base))
    state = trained(family)[1]
    base = family.load_transformer(torch.float32, "cpu")
    name = "cap_embedder.1.weight"
    payload = modules_file({name: state[name].bfloat16()}, {"dopsd.base": "tiny"})
    load_modules(base, "m.safetensors", payload)
    assert torch.equal(base.get_parameter(name), state[name].bfloat16().float())
    for wrong in ({"other.weight": torch.ones(1)}, {name: torch.ones(1)}):
        with pytest.raises(ModelError, match=r"^m.safetensors: no modules of this base \(weights"):
            load_modules(base, "m.safetensors", modules_file(wrong, {}))


def test_the_index_comes_last(tiny_base: Path) -> None:
    family = FAMILIES["z_image"](str(tiny_base))
    written: list[str] = []
    shards = [{"a": torch.ones(2)}, {"b": torch.ones(3)}]
    files: dict[str, bytes] = {}

    def write(name: str, payload: bytes) -> None:
        written.append(name)
        files[name] = payload

    write_transformer(write, "t", family.part_config("transformer"), iter(shards), 2, {})
    index = "t/diffusion_pytorch_model.safetensors.index.json"
    assert written[0] == "t/config.json" and written[-1] == index
    found = json.loads(files[index])
    assert found["metadata"]["total_size"] == 20
    assert found["weight_map"]["b"] == "diffusion_pytorch_model-00002-of-00002.safetensors"
