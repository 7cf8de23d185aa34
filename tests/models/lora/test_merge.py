"""LoRAs under a run's own: what is added to the base, and what is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dopsd.config import load_config
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import ConfigError, ModelError
from dopsd.models import FAMILIES
from dopsd.models.lora.digests import with_digests
from dopsd.models.lora.merge import MergedLora, check_merge, load_trained_base, merge, merged_record

NAME = "layers.0.attention.to_q"
RANK = 2


@pytest.fixture
def family():
    return FAMILIES["z_image"]("shapes")


def lora(family, prefix: str = "transformer.", scale: float = 1.0) -> dict[str, Tensor]:
    linear = family.skeleton().get_submodule(NAME)
    generator = torch.Generator().manual_seed(0)
    return {
        f"{prefix}{NAME}.lora_A.weight": torch.randn(RANK, linear.in_features, generator=generator),
        f"{prefix}{NAME}.lora_B.weight": scale
        * torch.randn(linear.out_features, RANK, generator=generator),
    }


def written(path: Path, tensors: dict[str, Tensor]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return str(path)


def test_own_diffusers_and_peft_keys_add_the_same_to_one_module_alone(family, tmp_path):
    base = family.load_transformer(torch.float32, "cpu")
    down, up = lora(family).values()
    expected = base.get_submodule(NAME).weight + 0.5 * up @ down
    ours = written(tmp_path / "a@b" / "ours.safetensors", lora(family))
    comfy = written(tmp_path / "comfy.safetensors", lora(family, "diffusion_model."))
    alpha = lora(family, "diffusion_model.", 2.0)  # alpha / r is a half
    alpha[f"diffusion_model.{NAME}.alpha"] = torch.tensor(RANK / 2)
    kohya = written(tmp_path / "kohya.safetensors", alpha)
    peft = written(tmp_path / "peft" / "adapter.safetensors", lora(family, "base_model.model."))
    (tmp_path / "peft" / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "bias": ""}')
    for entry in (f"{ours}@0.5", f"{comfy}@0.5", f"{kohya}@0.5", f"{peft}@0.25"):
        check_merge(family.skeleton(), family, [entry])
        merged = family.load_transformer(torch.float32, "cpu")
        merge(merged, family, [entry])
        assert torch.allclose(merged.get_submodule(NAME).weight, expected, atol=1e-5), entry
        changed = [
            name
            for name, weight in merged.named_parameters()
            if not torch.equal(weight, base.get_parameter(name))
        ]
        assert changed == [f"{NAME}.weight"] and not merged.get_submodule(NAME).weight.requires_grad
    back = family.load_transformer(torch.float32, "cpu")
    merge(back, family, [ours, f"{ours}@-1"])
    assert torch.allclose(
        back.get_submodule(NAME).weight, base.get_submodule(NAME).weight, atol=1e-5
    )


def test_a_run_trains_on_it_and_its_file_says_so(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.safetensors", lora(family))
    config = load_config(None, ["data.source=x", 'model.merge=["a.safetensors@0.5"]'])
    config = with_absolute_paths(config)
    assert config.model.merge == [f"{tmp_path}/a.safetensors@0.5"]
    plain = family.load_transformer(torch.bfloat16, "cpu").get_submodule(NAME).weight
    assert not torch.equal(
        load_trained_base(config, family, "cpu").get_submodule(NAME).weight, plain
    )
    (row,) = json.loads(merged_record(config.model.merge)["dopsd.merged"])
    assert (row["file"], row["scale"], len(row["sha256"])) == ("a.safetensors", 0.5, 64)
    known = with_digests(config)
    assert known.model.merge_sha256 == [row["sha256"]] and with_digests(known) == known
    written(tmp_path / "a.safetensors", lora(family, scale=2.0))
    for again in (lambda: with_digests(known), lambda: load_trained_base(known, family, "cpu")):
        with pytest.raises(ModelError, match=r"^model\.merge: .*another file than the run began"):
            again()
    with pytest.raises(ModelError, match=r"^model\.merge_sha256: 1 for 0 files"):
        known.model.merge = []
        with_digests(known)
    assert merged_record([]) == {}
    with pytest.raises(ConfigError, match=r"^model\.merge: given with adapters: full"):
        load_config(None, ["data.source=x", 'model.merge=["a"]', "adapters=full"])


@pytest.mark.parametrize("scale", ["0", "nan", "inf", "1e3"])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ModelError, match=r"^model\.merge: .*allowed: FILE or FILE@scale"):
        MergedLora.parse(f"a.safetensors@{scale}")


def test_what_does_not_fit_is_one_line_that_names_the_module(family, tmp_path):
    tensors = lora(family)
    down, up = tensors
    cases = {
        "is no linear module of this base": {
            key.replace("to_q", "to_z"): tensor for key, tensor in tensors.items()
        },
        "B and A are": {down: tensors[down][:, 1:].contiguous(), up: tensors[up]},
        f"{NAME}.lora_B.weight is missing": {down: tensors[down]},
        "is no part of a plain LoRA": tensors
        | {f"transformer.{NAME}.lora_magnitude_vector": torch.ones(3)},
        "is not finite": {down: tensors[down], up: tensors[up] * float("nan")},
        "no LoRA in it": {},
        "no adapter_config.json beside it": lora(family, "base_model.model."),
    }
    for number, (message, content) in enumerate(cases.items()):
        file = written(tmp_path / f"{number}" / "bad.safetensors", content)
        with pytest.raises(ModelError, match=rf"^model\.merge: .*{re.escape(message)}") as error:
            check_merge(family.skeleton(), family, [file])
        assert "\n" not in str(error.value)
    (tmp_path / "text.safetensors").write_text("no")
    for name, message in (("text.safetensors", "not a safetensors file"), ("gone", "no such file")):
        with pytest.raises(ModelError, match=message):
            check_merge(family.skeleton(), family, [str(tmp_path / name)])
    with pytest.raises(ModelError, match=r"^model\.merge: .*: a folder, allowed: a regular file"):
        check_merge(family.skeleton(), family, [str(tmp_path)])
