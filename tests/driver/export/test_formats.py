"""`dopsd export`: each format read back by who reads it, at equal strength."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dopsd.checkpoint.folder import write_checkpoint
from dopsd.checkpoint.learner_state import LearnerState
from dopsd.cli.main import main
from dopsd.config import RunConfig, dump_config
from dopsd.config.load import shown_values
from dopsd.errors import ModelError
from dopsd.export import lora_file
from dopsd.models import FAMILIES, Family
from dopsd.models.lora.files import read_lora_file
from dopsd.models.lora.formats import FORMATS, spelled
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from tests.helpers.tiny import LATENT, make_config, make_context, random_state
from tests.helpers.tiny_flux2 import LATENT as FLUX2_LATENT
from tests.helpers.tiny_flux2 import make_flux2_config, make_flux2_context

RANK, ALPHA = 4, 8.0
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}


class Run:
    """The folder of a run whose LoRA is random, and its base."""

    def __init__(self, folder: Path, config: RunConfig, noise: Tensor, context: Any) -> None:
        self.folder, self.config = folder / "run", config
        self.family: Family = FAMILIES[config.model.family](config.model.base)
        self.noise, self.context = noise, context
        transformer = self.family.load_transformer(torch.float32, "cpu")
        everything = self.family.lora_all_linear or self.family.lora_targets
        matched = resolve_targets(transformer, list(everything), ())
        lora = config.lora
        inject(transformer, matched, RANK, ALPHA, 0, dora=lora.dora)
        self.state = random_state(adapter_parameters(transformer, STUDENT), 2)
        for name, parameter in adapter_parameters(transformer, STUDENT).items():
            parameter.data.copy_(self.state[name])
        self.expected = self.velocity(transformer)
        self.folder.mkdir()
        (self.folder / "config.yaml").write_text(dump_config(config))
        self.metadata = {"dopsd.family": config.model.family, "dopsd.base": "owner/base"}
        payload = lora_file(self.state, RANK, ALPHA, self.metadata)
        (self.folder / "lora.safetensors").write_bytes(payload)

    @torch.no_grad()
    def velocity(self, transformer: Any) -> Tensor:
        return self.family.velocity(transformer, self.noise, torch.tensor([0.9, 0.4]), self.context)

    def exported(self, out: Path, *options: str) -> Path:
        assert main(["export", str(self.folder), "--out", str(out), *options]) == 0
        return out

    def differs(self, found: Tensor) -> float:
        return float((found - self.expected).abs().max() / self.expected.abs().max())


@pytest.fixture(params=["z_image", "flux2_klein"])
def run(request: Any, tmp_path: Path) -> Run:
    generator = torch.Generator().manual_seed(1)
    lora = {"rank": RANK, "alpha": ALPHA}
    if request.param == "z_image":
        config = make_config(request.getfixturevalue("tiny_base"), lora=lora)
        noise, context = torch.randn(2, *LATENT, generator=generator), make_context((9, 36), 0)
    else:
        config = make_flux2_config(request.getfixturevalue("tiny_flux2"), lora=lora)
        noise = torch.randn(2, *FLUX2_LATENT, generator=generator)
        context = make_flux2_context(2, 0)
    return Run(tmp_path, config, noise, context)


def test_what_diffusers_reads_draws_as_the_student_does(run: Run, tmp_path: Path) -> None:
    pipeline = run.family.load_pipeline(torch.float32, "cpu", text_encoder=False)
    for format in ("diffusers", "kohya", "comfyui"):
        for dtype in TOLERANCE if format == "diffusers" else ("fp32",):
            out = tmp_path / f"{format}-{dtype}.safetensors"
            run.exported(out, "--format", format, "--dtype", dtype)
            pipeline.load_lora_weights(str(out))
            assert run.differs(run.velocity(pipeline.transformer)) < TOLERANCE[dtype], out
            pipeline.unload_lora_weights()
            with safe_open(out, framework="pt") as file:
                assert file.metadata() == {"format": "pt", **run.metadata}
            wide = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
            assert {tensor.dtype for tensor in load_file(out).values()} == {wide}
    assert run.differs(run.velocity(pipeline.transformer)) > 0.01


def test_a_format_whose_names_of_a_family_are_not_known_is_refused() -> None:
    state = {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}
    for format, name in (("comfyui", "qwen_image"), ("kohya", "krea2"), ("kohya", "qwen_image")):
        with pytest.raises(ModelError, match=f"^--format: {format} of {name}, .*: diffusers, peft"):
            spelled(state, format, FAMILIES[name])


def test_peft_reads_its_folder_and_our_reader_reads_each(run: Run, tmp_path: Path) -> None:
    folder = run.exported(tmp_path / "peft", "--format", "peft", "--dtype", "fp32")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    transformer = run.family.load_transformer(torch.float32, "cpu")
    peft.PeftModel.from_pretrained(transformer, str(folder))
    assert run.differs(run.velocity(transformer)) < TOLERANCE["fp32"]
    assert peft.PeftConfig.from_pretrained(folder).base_model_name_or_path == "owner/base"
    for format in FORMATS:
        out = folder / "adapter_model.safetensors"
        if format != "peft":
            out = run.exported(
                tmp_path / f"{format}.safetensors", "--format", format, "--dtype", "fp32"
            )
        file = read_lora_file(str(out), "lora.init", run.family)
        assert file.tensors.keys() == run.state.keys()
        for name, tensor in file.tensors.items():
            scale = ALPHA / RANK if ".lora_B." in name else 1.0
            torch.testing.assert_close(tensor, run.state[name] * scale, atol=1e-5, rtol=1e-5)


def test_every_module_of_krea2_has_a_name_in_comfyui(tiny_krea2: Path) -> None:
    """Its `krea2_to_diffusers` and the branch of `model_lora_keys_unet` that takes its names behind
    `transformer.`, as of July 2026."""
    family = FAMILIES["krea2"](str(tiny_krea2))
    known = (
        r"transformer\.(transformer_blocks|text_fusion\.(layerwise|refiner)_blocks)\.\d+\."
        r"(attn\.(to_[qkv]|to_gate|to_out\.0)|ff\.(gate|up|down))\.lora_[AB]\.weight"
    )
    matched = resolve_targets(family.skeleton(), list(family.lora_all_linear), ())
    names = [name for found in matched.values() for name in found]
    state = {f"{name}.lora_{end}.weight": torch.ones(2, 2) for name in names for end in "AB"}
    keys = spelled(state, "comfyui", FAMILIES["krea2"])
    assert len(keys) == len(state) > 0
    assert [key for key in keys if not re.fullmatch(known, key)] == []


def comfyui_modules(run: Run) -> set[str]:
    """Diffusers' names of the modules for which ComfyUI has keys (`comfy/utils.py`, since December
    2025): of Z-Image's blocks and refiners, of FLUX.2's double and single blocks."""
    ends = {
        "z_image": r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)"
        r"|feed_forward\.w[123]|adaLN_modulation\.0)",
        "flux2_klein": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|"
        r"to_add_out)|(ff|ff_context)\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    }[run.family.name]
    names = (name for name, _ in run.family.skeleton().named_modules())
    return {name for name in names if re.fullmatch(ends, name)}


def test_our_keys_are_those_that_comfyui_reads(run: Run, tmp_path: Path) -> None:
    """Its branch `diffusers2`: ``<a name it knows>.lora_A.weight`` and ``.lora_B.weight``; what has
    another end is left out, and an alpha beside them would scale."""
    known = comfyui_modules(run)
    prefixes = {"z_image": ("transformer.", "diffusion_model."), "flux2_klein": ("transformer.",)}
    for format in ("comfyui", "diffusers"):
        out = run.exported(tmp_path / f"{format}.safetensors", "--format", format)
        modules = set()
        for key in load_file(out):
            match = re.fullmatch(r"(\w+\.)(.+)\.lora_[AB]\.weight", key)
            assert match and match[1] in prefixes[run.family.name], key
            modules.add(match[2])
        assert modules and modules <= known
    # Every module that a recipe may adapt has a name there.
    targets = run.family.lora_all_linear or run.family.lora_targets
    matched = resolve_targets(run.family.skeleton(), list(targets), ())
    assert {name for names in matched.values() for name in names} <= known


def test_a_step_is_exported_from_its_checkpoint_and_nothing_is_replaced(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tiny_base, lora={"rank": RANK, "alpha": ALPHA})
    run = Run(tmp_path, config, torch.randn(2, *LATENT), make_context((9, 36), 0))
    earlier = {name: tensor + 1 for name, tensor in run.state.items()}
    write_checkpoint(
        str(run.folder / "checkpoints"),
        LearnerState(20, earlier, earlier, 0, {}).to_files(),
        step=20,
        policy_versions=(),
        config=shown_values(config),
        data="abc",
        plan="",
        learners=1,
    )
    out = run.exported(tmp_path / "s.safetensors", "--which", "step-20", "--dtype", "fp32")
    name = next(name for name in earlier if ".lora_B." in name)
    assert torch.equal(load_file(out)[f"transformer.{name}"], earlier[name] * (ALPHA / RANK))
    with safe_open(out, framework="pt") as file:
        assert (file.metadata()["dopsd.step"], file.metadata()["dopsd.data"]) == ("20", "abc")

    def refused(*words: str) -> str:
        assert main(["export", *words]) == 1
        return " ".join(capsys.readouterr().err.split())

    folder, other = str(run.folder), str(tmp_path / "o.safetensors")
    before = out.read_bytes()
    assert "is there already" in refused(folder, "--out", str(out))
    link = tmp_path / "link.safetensors"
    link.symlink_to("nowhere")
    assert "is there already" in refused(folder, "--out", str(link)) and link.is_symlink()
    assert out.read_bytes() == before
    assert "allowed: step-20" in refused(folder, "--out", other, "--which", "step-7")
    assert "no teacher/lora.safetensors" in refused(folder, "--out", other, "--which", "teacher")
    assert "student, teacher, step-20" in refused(folder, "--out", other, "--which", "best")
    assert "holds no run" in refused(str(tmp_path / "none"), "--out", other)
    assert "allowed: a folder" in refused(folder, "--out", other, "--format", "peft")
    assert "ends in .safetensors" in refused(folder, "--out", str(tmp_path / "o.pt"))
    assert "--format: 'onnx', allowed: diffusers" in refused(
        folder, "--out", other, "--format", "onnx"
    )
    huge = {name: tensor * 1e6 for name, tensor in run.state.items()}
    path = run.folder / "lora.safetensors"
    path.write_bytes(lora_file(huge, RANK, ALPHA, run.metadata))
    assert "--dtype: fp16 cannot hold" in refused(folder, "--out", other, "--dtype", "fp16")
    assert not Path(other).exists()


def test_a_dora_is_written_for_who_reads_it(tmp_path: Path, tiny_base: Path, capsys: Any) -> None:
    config = make_config(tiny_base, lora={"rank": RANK, "alpha": ALPHA, "dora": True})
    run = Run(tmp_path, config, torch.randn(2, *LATENT), make_context((9, 36), 0))
    folder = run.exported(tmp_path / "peft", "--format", "peft", "--dtype", "fp32")
    transformer = run.family.load_transformer(torch.float32, "cpu")
    peft.PeftModel.from_pretrained(transformer, str(folder))
    assert run.differs(run.velocity(transformer)) < TOLERANCE["fp32"]
    for format in ("kohya", "comfyui"):
        words = ["--out", str(tmp_path / "o.safetensors"), "--format", format]
        assert main(["export", str(run.folder), *words]) == 1
        assert "of a DoRA, allowed: diffusers, peft" in " ".join(capsys.readouterr().err.split())
