"""Evaluating what is more than a LoRA: transformer folders, and modules beside a LoRA."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from safetensors.torch import save_file

from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.sampler import EvaluationSampler
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec, resolve
from dopsd.models import FAMILIES
from tests.evaluation.test_run import save_lora


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as runs of `full` (in two files) and of `lora+modules` leave them."""
    folder = tmp_path_factory.mktemp("runs")
    transformer = FAMILIES["z_image"](str(tiny_base)).load_transformer(torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in transformer.state_dict().items()
    }
    transformer.load_state_dict(state)
    transformer.save_pretrained(folder / "full" / "transformer", max_shard_size="200KB")
    assert len(list((folder / "full" / "transformer").glob("*.safetensors"))) > 1
    (folder / "modules").mkdir()
    save_lora(str(tiny_base), folder / "modules" / "lora.safetensors", 1)
    norms = {name: t for name, t in state.items() if name.endswith("norm1.weight")}
    save_file(norms, folder / "modules" / "modules.safetensors")
    (folder / "plain").mkdir()
    save_lora(str(tiny_base), folder / "plain" / "lora.safetensors", 1)
    return folder


def spec_of(base: Path, *models: EvaluatedModel) -> EvaluateSpec:
    spec = EvaluateSpec("out", (EvalPrompt("a red cat", "cat"),), models, base=str(base))
    return resolve(replace(spec, height=32, width=16))


def test_a_drawer_goes_from_model_to_model_and_back(tiny_base: Path, runs: Path) -> None:
    names = ("full", "modules", "plain")
    found = [as_trained(each) for each in evaluated_models([str(runs / name) for name in names])]
    assert [each.name for each in found] == list(names)
    assert found[0].transformer == str(runs / "full" / "transformer") and not found[0].loras
    assert found[1].modules == str(runs / "modules" / "modules.safetensors")
    assert found[2].modules is found[2].transformer is None
    spec = spec_of(tiny_base, *found)
    sampler = EvaluationSampler(spec, "cpu")

    def draw(model: EvaluatedModel) -> bytes:
        payloads = [Path(path).read_bytes() for path in model.files]
        return sampler.generate(model, payloads, ["a red cat"], [0], 2)[0]

    first = {model.name: draw(model) for model in spec.models}
    assert len(set(first.values())) == 4 and spec.models[0].name == BASE
    for model in spec.models[::-1]:
        assert draw(model) == first[model.name], model.name
    stock = ZImageTransformer2DModel.from_pretrained(runs / "full" / "transformer")
    draw(spec.models[1])
    whole = dict(stock.named_parameters())
    assert all(torch.equal(t, whole[n]) for n, t in sampler.pipeline.transformer.named_parameters())


def test_only_loras_are_stacked(runs: Path) -> None:
    for name in ("full", "modules"):
        given = [str(runs / "plain"), str(runs / name)]
        with pytest.raises(ConfigError, match=r"--stack: .* is more than a LoRA"):
            [as_trained(each) for each in evaluated_models(given, True)]


def test_what_does_not_fit_is_refused(tiny_base: Path, runs: Path, tmp_path: Path) -> None:
    folder = runs / "full" / "transformer"
    with pytest.raises(ConfigError, match=r"model 'x': a LoRA on .*, allowed"):
        spec_of(tiny_base, EvaluatedModel("x", ("a.safetensors",), transformer=str(folder)))
    with pytest.raises(ModelError, match="expected a folder with a ZImageTransformer2DModel"):
        spec_of(tiny_base, EvaluatedModel("x", transformer=str(tmp_path)))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    values = json.loads(index.read_text())
    gone = sorted(set(values["weight_map"].values()))[0]
    values["weight_map"] = {n: f for n, f in values["weight_map"].items() if f != gone}
    index.write_text(json.dumps(values))
    spec = spec_of(tiny_base, EvaluatedModel("x", transformer=str(tmp_path)))
    with pytest.raises(ModelError, match=r"[0-9]+ weights missing, e\.g\."):
        EvaluationSampler(spec, "cpu").generate(spec.models[1], [], ["a"], [0], 1)
