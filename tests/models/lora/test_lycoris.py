"""LoKr and LoHa: what is injected, what a file says, and what others make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from safetensors.torch import load_file, save_file
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.generate import load_lora, refuse_mixed
from dopsd.export import described, lora_file
from dopsd.learner.gradient_check import GradientCheck
from dopsd.learner.student import build_student
from dopsd.models import FAMILIES
from dopsd.models.lora.factors import Factors, is_last, kronecker_sides
from dopsd.models.lora.files import read_lora_file
from dopsd.models.lora.formats import spelled
from dopsd.models.lora.layers import BASE, STUDENT, TEACHER, activate, lora_layers
from dopsd.models.lora.loading import load_adapter
from dopsd.models.lora.lycoris import by_module, delta, flat
from dopsd.models.lora.merge import merge
from dopsd.models.trained import TrainableParameters
from tests.helpers.tiny import LATENT, make_config, make_context, random_state
from tests.helpers.tiny_krea2 import make_krea2_config

KINDS = {
    "lokr": {"kind": "lokr", "factor": 4},
    "lokr whole": {"kind": "lokr", "factor": -1, "rank": 16},
    "lokr both": {"kind": "lokr", "factor": -1, "rank": 2, "decompose_both": True},
    "loha": {"kind": "loha"},
}
ALPHA = 6.0
TARGETS = ["attention.to_q", "feed_forward.w1", "feed_forward.w2"]


class Adapted:
    """A tiny Z-Image with student and teacher adapters of one kind, the student's random."""

    def __init__(self, base: Path, lora: dict[str, Any], **sections: Any) -> None:
        section = {"rank": 4, "alpha": ALPHA, "targets": TARGETS, **lora}
        self.config = make_config(base, lora=section, **sections)
        self.family = FAMILIES["z_image"](str(base))
        student = build_student(self.config, self.family, "cpu", with_teacher=True)
        self.transformer, self.trained = student.transformer, student.trained
        self.noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
        self.context = make_context((9, 36), 0)
        self.parameters = self.trained.parameters(self.transformer, STUDENT)

    def randomize(self) -> dict[str, Tensor]:
        """fp32 weights of the student from now on, which the teacher has not."""
        state = random_state(self.parameters, 3)
        self.trained.bind(self.transformer, STUDENT, state)
        return state

    def file(self) -> bytes:
        lora = self.config.lora
        return lora_file(self.randomize(), lora.rank, lora.alpha, described(self.config, "data"))

    def velocity(self, transformer: Any = None) -> Tensor:
        sigma = torch.tensor([0.9, 0.4])
        where = self.transformer if transformer is None else transformer
        return self.family.velocity(where, self.noise, sigma, self.context)

    def drawn(self, adapter: str = STUDENT) -> Tensor:
        activate(self.transformer, adapter)
        with torch.no_grad():
            return self.velocity()


@pytest.fixture(params=KINDS)
def adapted(request: Any, tiny_base: Path) -> Adapted:
    return Adapted(tiny_base, KINDS[request.param])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_sides_are_cut_as_peft_cuts_them() -> None:
    for size in range(1, 700):
        for factor in (-1, 1, 2, 3, 4, 6, 8, 16, 100):
            assert kronecker_sides(size, factor) == factorization(size, factor), (size, factor)


def test_shapes_and_numbers_are_those_of_the_injected(adapted: Adapted) -> None:
    skeleton = adapted.family.skeleton()
    numel = sum(parameter.numel() for parameter in adapted.parameters.values())
    assert adapted.trained.numel(skeleton) == numel
    factors = Factors.of(adapted.config.lora)
    for name in adapted.trained.adapted(skeleton):
        linear: Any = skeleton.get_submodule(name)
        shapes = factors.shapes(linear.out_features, linear.in_features)
        for part, shape in shapes.items():
            assert tuple(adapted.parameters[f"{name}.{part}"].shape) == shape


def test_it_begins_as_the_base_equal_in_every_process(adapted: Adapted, tiny_base: Path) -> None:
    assert torch.equal(adapted.drawn(), adapted.drawn(BASE))
    torch.manual_seed(99)  # no one draws from it
    other = Adapted(tiny_base, adapted.config.lora.model_dump(exclude={"targets", "alpha"}))
    teacher = other.trained.parameters(other.transformer, TEACHER)
    for name, parameter in adapted.parameters.items():
        assert torch.equal(parameter, other.parameters[name])
        assert torch.equal(parameter, teacher[name])
        assert parameter.requires_grad and not teacher[name].requires_grad
        assert bool(parameter.any()) != is_last(name)


def test_adapters_are_switched_and_draw_what_peft_draws(adapted: Adapted) -> None:
    adapted.randomize()
    drawn = adapted.drawn()
    assert not torch.equal(drawn, adapted.drawn(TEACHER))
    for name, layer in lora_layers(adapted.transformer):
        own: Any = layer
        x = torch.randn(2, 3, own.in_features)
        weight = own.get_delta_weight(STUDENT)
        close(own._get_delta_activations(STUDENT, x), x @ weight.T)
        assert not own.training, name  # else PEFT draws a number in each call


@pytest.mark.parametrize("every", [0, 1])
def test_gradients_reach_every_factor(tiny_base: Path, every: int) -> None:
    for lora in KINDS.values():
        adapted = Adapted(tiny_base, lora, learner={"gradient_checkpointing": bool(every)})
        first = GradientCheck(adapted.parameters)
        adapted.velocity().square().mean().backward()
        first.finish()  # of the step in which the last factors alone move
        adapted.randomize()
        adapted.transformer.zero_grad()
        adapted.velocity().square().mean().backward()
        for name, parameter in adapted.parameters.items():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_a_dead_last_factor_is_named(adapted: Adapted) -> None:
    adapted.transformer.zero_grad()
    check = GradientCheck(adapted.parameters)
    adapted.velocity().square().mean().backward()
    name = next(name for name in adapted.parameters if is_last(name))
    check._largest[name].zero_()
    with pytest.raises(ModelError, match=f"^{name} of "):
        check.finish()


def test_every_spelling_stands_for_what_the_student_adds(
    adapted: Adapted, tmp_path: Path, tiny_base: Path
) -> None:
    (tmp_path / "own.safetensors").write_bytes(adapted.file())
    expected = adapted.drawn()
    family, names = adapted.family, [n for n, _ in adapted.family.skeleton().named_modules()]
    file = read_lora_file(str(tmp_path / "own.safetensors"), "lora.init", family)
    weights = {
        name: layer.get_delta_weight(STUDENT) for name, layer in lora_layers(adapted.transformer)
    }
    for format in ("comfyui", "kohya", "peft"):
        path = tmp_path / f"{format}.safetensors"
        save_file(spelled(file.tensors, format, type(family)), path)  # type: ignore[arg-type]
        found = by_module(load_file(path), "file", names)
        assert found.keys() == weights.keys()
        for name, parts in found.items():
            close(delta(parts), weights[name])
    keys = load_file(tmp_path / "kohya.safetensors")
    assert all(key.startswith("lycoris_layers_") or "_refiner_" in key for key in keys)
    for path in (tmp_path / "own.safetensors", tmp_path / "kohya.safetensors"):
        transformer = family.load_transformer(torch.float32, "cpu")
        merge(transformer, family, [str(path)])
        with torch.no_grad():
            close(adapted.velocity(transformer), expected)
        again = Adapted(tiny_base, adapted.config.lora.model_dump() | {"init": str(path)})
        close(again.drawn(), expected)
        close(again.drawn(TEACHER), expected)


def test_a_pipeline_loads_unloads_and_weighs_it(adapted: Adapted) -> None:
    payload, expected = adapted.file(), adapted.drawn()
    pipeline: Any = adapted.family.load_pipeline(torch.float32, "cpu", text_encoder=False)
    with torch.no_grad():
        base = adapted.velocity(pipeline.transformer)
        for _ in range(2):  # what was taken off leaves nothing behind
            load_lora(pipeline, "a.safetensors", payload, "one")
            pipeline.set_adapters(["one"], [1.0])
            close(adapted.velocity(pipeline.transformer), expected)
            pipeline.set_adapters(["one"], [0.0])
            close(adapted.velocity(pipeline.transformer), base)
            pipeline.set_adapters(["one"], [1.0])
            pipeline.disable_lora()
            assert torch.equal(adapted.velocity(pipeline.transformer), base)
            pipeline.enable_lora()
            pipeline.unload_lora_weights()
            assert torch.equal(adapted.velocity(pipeline.transformer), base)
        state = {f"transformer.{n}": t for n, t in random_state(adapted.parameters, 1).items()}
        load_adapter(pipeline, state, "mine")
        plain = {"transformer.layers.0.attention.to_q.lora_A.weight": torch.ones(1, 48)}
        with pytest.raises(ModelError, match=r"^a LoRA beside a Lo.*: adapters of one kind"):
            load_adapter(pipeline, plain, "other")


def test_stock_diffusers_reads_the_file_or_refuses_it_whole(
    adapted: Adapted, tmp_path: Path
) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    path.write_bytes(adapted.file())
    pipeline: Any = adapted.family.load_pipeline(torch.float32, "cpu", text_encoder=False)
    if adapted.config.lora.kind in adapted.family.diffusers_kinds:
        pipeline.load_lora_weights(str(path))
        with torch.no_grad():
            close(adapted.velocity(pipeline.transformer), adapted.drawn())
    else:
        with pytest.raises(ValueError, match="Invalid adapter checkpoint"):
            pipeline.load_lora_weights(str(path))


def test_a_family_that_diffusers_reads_no_lokr_of_is_drawn_here_too(tiny_krea2: Path) -> None:
    section = {"rank": 2, "alpha": 2, "kind": "lokr", "targets": ["attn.to_q"]}
    config = make_krea2_config(tiny_krea2, lora=section)
    family = FAMILIES["krea2"](str(tiny_krea2))
    student = build_student(config, family, "cpu", with_teacher=False)
    state = random_state(student.trained.parameters(student.transformer, STUDENT), 3)
    student.trained.bind(student.transformer, STUDENT, state)
    pipeline: Any = family.load_pipeline(torch.float32, "cpu", text_encoder=False)
    named = {f"transformer.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(dict(named))
    load_adapter(pipeline, named, "one")
    loaded = {name: layer for name, layer in lora_layers(pipeline.transformer)}
    for name, layer in lora_layers(student.transformer):
        close(loaded[name].get_delta_weight("one"), layer.get_delta_weight(STUDENT))
    with pytest.raises(ModelError, match=r"--format: diffusers of a LoKr of krea2.*peft"):
        spelled(state, "diffusers", type(family))


def test_what_does_not_fit_is_one_line(adapted: Adapted, tmp_path: Path, tiny_base: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(adapted.file())
    own = adapted.config.lora.model_dump()

    def refused(match: str, **lora: Any) -> None:
        with pytest.raises(ModelError, match=match):
            Adapted(tiny_base, own | {"init": str(path)} | lora)

    usual = {"factor": 8, "decompose_both": False}
    refused(r"lora.kind is lora; allowed: a LoRA", kind="lora", **usual)
    refused(r"modules fit, but lora.targets names", targets=[*TARGETS, "attention.to_k"])
    if own["kind"] == "loha":
        refused(r"is hada_w1_a .*, here .*allowed: lora.rank of the file", rank=3)
    else:
        refused(r"is lokr_w1.*, here .*lora.factor and lora.decompose_both of the file", factor=2)
    tensors = load_file(path)
    key = sorted(tensors)[0]
    for name, change, line in (
        ("lost", {k: t for k, t in tensors.items() if k != key}, "which is no Lo"),
        ("both", tensors | {"transformer.x.lora_A.weight": torch.ones(1, 2)}, "in one file"),
    ):
        save_file(change, tmp_path / name)
        with pytest.raises(ModelError, match=line):
            read_lora_file(str(tmp_path / name), "model.merge", adapted.family)
    plain = {"x.lora_A.weight": torch.ones(1, 2)}
    save_file(plain, tmp_path / "plain")
    with pytest.raises(ModelError, match=r"beside a Lo.*one kind"):
        refuse_mixed({str(p): p.read_bytes() for p in (path, tmp_path / "plain")})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lora": {"kind": "lokr", "dora": True}}, "lora.dora: true with lora.kind: lokr"),
        ({"lora": {"kind": "loha", "factor": 4}}, "lora.factor or lora.decompose_both: given"),
        ({"lora": {"kind": "lokr", "factor": 0}}, "lora.factor: 0, allowed: 1 or more, or -1"),
        (
            {"lora": {"kind": "loha", "rank_stabilized": True}},
            "lora.rank_stabilized: true with lora.kind: loha",
        ),
        (
            {"lora": {"kind": "loha"}, "model": {"quantize": "nf4"}},
            "model.quantize: nf4 with lora.kind: loha, allowed: none, int8, fp8",
        ),
        ({"adapters": "full", "lora": {"kind": "lokr"}}, "lora.kind: lokr with adapters: full"),
    ],
)
def test_what_cannot_be_is_refused_by_the_config(change: dict[str, Any], line: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=line):
        RunConfig.model_validate({"data": {"source": "shapes:dax"}, **change})


def test_modules_are_trained_beside_it(tiny_base: Path) -> None:
    section = {"kind": "lokr", "rank": 4, "factor": 4, "modules_to_train": ["norms"]}
    config = make_config(tiny_base, adapters="lora+modules", lora=section)
    family = FAMILIES["z_image"](str(tiny_base))
    trained = TrainableParameters(config, family)
    before = trained.numel(family.skeleton())
    transformer = family.load_transformer(torch.float32, "cpu")
    trained.prepare(transformer, (STUDENT,))
    parameters = trained.parameters(transformer, STUDENT)
    assert sum(parameter.numel() for parameter in parameters.values()) == before
    assert any("norm" in name for name in parameters)


def test_peft_loads_the_exported_folder(adapted: Adapted, tmp_path: Path) -> None:
    from dopsd.driver.export.formats import export_lora

    path, out = tmp_path / "own.safetensors", tmp_path / "peft"
    path.write_bytes(adapted.file())
    export_lora(str(path), "peft", "fp32", STUDENT, str(out))
    transformer = adapted.family.load_transformer(torch.float32, "cpu")
    peft.PeftModel.from_pretrained(transformer, str(out))
    with torch.no_grad():
        close(adapted.velocity(transformer), adapted.drawn())
    assert (
        json.loads((out / "adapter_config.json").read_text())["alpha"] == adapted.config.lora.rank
    )
    own = read_lora_file(str(path), "lora.init", adapted.family).tensors
    found = read_lora_file(str(out / "adapter_model.safetensors"), "lora.init", adapted.family)
    assert found.tensors.keys() == own.keys() == flat(by_module(own, "x")).keys()
    for name, tensor in found.tensors.items():
        close(tensor, own[name])
