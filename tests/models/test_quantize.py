"""A quantised base: bytes that are kept, gradients of a LoRA on it, and what leaves the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dopsd.config import RunConfig, load_config
from dopsd.config.load import shown_values
from dopsd.contexts.vlm_weights import load_vlm
from dopsd.driver.setup.checks import check_options
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.generate import load_lora
from dopsd.export import lora_file
from dopsd.learner.student import Student, build_student
from dopsd.learner.zero.engine import ZeroEngine, engine_config, read_preset
from dopsd.models import FAMILIES, quantize
from dopsd.models.checksum import checksum
from dopsd.models.families.family import Family
from dopsd.models.lora.layers import STUDENT, TEACHER, activate
from dopsd.models.quantize import check_quantize, is_quantized, outside_of_blocks, resident_bytes
from dopsd.plan.architecture import architecture
from dopsd.plan.quantized import base_bytes
from dopsd.rollout.worker import InferenceWorker

pytest.importorskip("torchao", reason="of the extra `quantize`")
TOKENS = 12


def config_of(base: Path, kind: str, *overrides: str, family: str = "z_image") -> RunConfig:
    keys = [f"model.base={base}", f"model.family={family}", f"model.quantize={kind}"]
    keys += ["model.dtype=bfloat16", "device=cpu", "lora.rank=4"]
    return load_config("shapes", [*keys, *overrides])


@pytest.fixture(params=["z_image", "flux2_klein"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tiny_flux2: Path) -> tuple[str, Path]:
    return request.param, {"z_image": tiny_base, "flux2_klein": tiny_flux2}[request.param]


def student_of(base: tuple[str, Path], kind: str) -> Student:
    config = config_of(base[1], kind, family=base[0])
    family = FAMILIES[base[0]](str(base[1]))
    return build_student(config, family, "cpu", with_teacher=True)


def velocity(student: Student, call: Callable[..., Tensor] | None = None) -> Tensor:
    """From the same inputs for every student of a base; ``call``: in place of its own."""
    generator = torch.Generator().manual_seed(7)
    shape = student.family.latent_shape(64, 64)
    latents = torch.randn(1, *shape, generator=generator)
    width = student.family.part_config("transformer")
    width = width.get("cap_feat_dim") or width["joint_attention_dim"]
    embeds = torch.randn(1, TOKENS, width, generator=generator).bfloat16()
    tensors = {"embeds": embeds}
    if not student.family.text_format.padded:
        tensors["lengths"] = torch.tensor([TOKENS])
    return (call or student)(latents, torch.tensor([0.75]), tensors)


def gradients(student: Student) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    parameters = student.trained.parameters(student.transformer, STUDENT)
    with torch.no_grad():  # B begins at zero, and A would get no gradient
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    activate(student.transformer, STUDENT)
    velocity(student).square().mean().backward()
    return {name: p.grad.float() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_bytes_by_counter_are_those_that_are_planned(base: tuple[str, Path], kind: str) -> None:
    family = FAMILIES[base[0]](str(base[1]))
    plain = family.load_transformer(torch.bfloat16, "cpu")
    small = family.load_transformer(torch.bfloat16, "cpu", quantize=kind)
    model = architecture(base[0], family.part_config("transformer"))
    fixed = resident_bytes(plain) - base_bytes(model, "none", 2)  # padding tokens of tiny models
    assert abs(fixed) < 0.02 * resident_bytes(plain)
    assert resident_bytes(small) - fixed == pytest.approx(base_bytes(model, kind, 2), rel=0.01)
    assert resident_bytes(small) < 0.85 * resident_bytes(plain)


def test_every_linear_layer_of_the_blocks_and_no_other_is_quantised(
    base: tuple[str, Path],
) -> None:
    family = FAMILIES[base[0]](str(base[1]))
    small: Any = family.load_transformer(torch.bfloat16, "cpu", quantize="int8")
    outside = set(outside_of_blocks(small))
    linear = {n: m for n, m in small.named_modules() if isinstance(m, nn.Linear)}
    assert {name for name, layer in linear.items() if not is_quantized(layer.weight)} == outside
    assert 0 < len(outside) < len(linear)


def test_gradients_of_a_lora_are_within_two_percent(base: tuple[str, Path]) -> None:
    plain, small = (gradients(student_of(base, kind)) for kind in ("none", "int8"))
    assert plain.keys() == small.keys() and len(plain) > 20
    both = [torch.cat([g.flatten() for g in each.values()]) for each in (plain, small)]
    difference = float((both[0] - both[1]).norm() / both[0].norm())
    assert 0 < difference < 0.02
    assert float(both[0].norm()) > 0


def test_what_trains_is_not_quantised_and_begins_the_same(base: tuple[str, Path]) -> None:
    students = [student_of(base, kind) for kind in ("none", "int8")]
    states = [each.trained.parameters(each.transformer, STUDENT) for each in students]
    assert checksum(dict(states[0])) == checksum(dict(states[1]))
    assert {p.dtype for p in states[1].values()} == {torch.bfloat16}
    # DeepSpeed casts and broadcasts what is a parameter: none of these is quantised.
    assert not any(is_quantized(p) for p in students[1].parameters())
    assert any(is_quantized(b) for b in students[1].buffers())
    names = {name for name, _ in students[1].named_parameters()}
    assert names <= {name for name, _ in students[0].named_parameters()}


def test_casting_and_moving_the_model_leaves_the_quantised_weights(
    base: tuple[str, Path],
) -> None:
    student = student_of(base, "int8")
    before = velocity(student)
    size = resident_bytes(student)
    for parameter in student.parameters():  # as DeepSpeed does
        parameter.data = parameter.data.to(torch.bfloat16)
    student.to("cpu")
    assert resident_bytes(student) == size
    assert torch.equal(velocity(student), before)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_deepspeed_neither_casts_nor_sends_quantised_weights(
    alone: None, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(("z_image", tiny_base), "int8")
    before = resident_bytes(student)
    held = {name: b for name, b in student.named_buffers() if is_quantized(b)}
    sent: list[Tensor] = []
    broadcast = dist.broadcast

    def counted(tensor: Tensor, **options: Any) -> Any:
        sent.append(tensor)
        return broadcast(tensor, **options)

    monkeypatch.setattr(dist, "broadcast", counted)
    config = config_of(tiny_base, "int8", "learner.micro_batch=1", "learner.global_batch=2")
    settings = engine_config(config, read_preset("zero1"), accumulation=1)
    engine = ZeroEngine(student, settings, config.learner)
    assert resident_bytes(student) == before and len(held) > 20
    assert sent and not any(is_quantized(tensor) for tensor in sent)
    bits = {name: held[name].qdata.clone() for name in held}
    first = {name: p.detach().clone() for name, p in engine.trained().items()}
    for _ in range(2):  # B begins at zero, so that A moves in the second step alone
        assert engine.backward(velocity(student, engine.velocity).square().mean())
    assert not any(torch.equal(first[name], p) for name, p in engine.trained().items())
    assert all(torch.equal(bits[name], held[name].qdata) for name in held)


def test_student_and_teacher_stand_on_the_same_base(base: tuple[str, Path]) -> None:
    student = student_of(base, "int8")
    activate(student.transformer, TEACHER)
    taught = velocity(student)
    activate(student.transformer, STUDENT)
    assert torch.equal(velocity(student), taught)  # both adapters begin at zero


def test_a_rollout_worker_computes_as_the_learner_does(tiny_base: Path) -> None:
    config = config_of(tiny_base, "int8")
    worker = InferenceWorker(config, "cpu", (STUDENT,))
    student = student_of(("z_image", tiny_base), "int8")
    served = Student(worker.family, worker.transformer, worker.trained)
    assert torch.equal(velocity(served), velocity(student))


def test_its_adapter_loads_into_an_unquantised_pipeline(tiny_base: Path) -> None:
    """Publication and export know nothing of the base: names, shapes and values are the LoRA's."""
    student = student_of(("z_image", tiny_base), "int8")
    gradients(student)
    parameters = student.trained.parameters(student.transformer, STUDENT)
    state = {name: p.detach().float() for name, p in parameters.items()}
    lora = config_of(tiny_base, "int8").lora
    payload = lora_file(state, lora.rank, lora.alpha, {})
    family: Family = FAMILIES["z_image"](str(tiny_base))
    pipeline = family.load_pipeline(torch.bfloat16, "cpu", text_encoder=False)
    load_lora(pipeline, "lora.safetensors", payload, "lora")
    served = Student(family, pipeline.transformer, student.trained)
    expected, ours = velocity(served).float(), velocity(student).float()
    base = velocity(student_of(("z_image", tiny_base), "none")).float()
    assert float((ours - expected).norm()) < 0.25 * float((expected - base).norm())


def test_pictures_are_drawn_on_the_quantised_base(tiny_base: Path) -> None:
    family = FAMILIES["z_image"](str(tiny_base))
    pipeline = family.load_pipeline(torch.bfloat16, "cpu", text_encoder=False, quantize="int8")
    assert any(is_quantized(p) for p in pipeline.transformer.parameters())
    assert not any(is_quantized(p) for p in pipeline.vae.parameters())


def test_the_encoder_is_quantised_but_for_its_vision_tower(tiny_base: Path) -> None:
    folders = str(tiny_base / "vlm"), str(tiny_base)
    plain = load_vlm(*folders, torch.bfloat16, "cpu")
    small = load_vlm(*folders, torch.bfloat16, "cpu", quantize="int8")
    assert resident_bytes(small) < 0.9 * resident_bytes(plain)
    assert any(is_quantized(p) for p in small.language_model.parameters())
    assert not any(is_quantized(p) for p in small.visual.parameters())
    ids = torch.arange(5)[None]
    with torch.no_grad():
        outputs = [m.language_model(ids).last_hidden_state.float() for m in (plain, small)]
    difference = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 0 < float(difference) < 0.05


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    yield


def test_a_missing_library_is_named_before_anything_starts(without_libraries: None) -> None:
    check_quantize("none", "model.quantize")
    with pytest.raises(ConfigError, match=r"model.quantize: fp8, but torchao is not installed"):
        check_quantize("fp8", "model.quantize")
    with pytest.raises(ConfigError, match=r"encoder.quantize: nf4, but bitsandbytes is not"):
        check_options(load_config("shapes", ["encoder.quantize=nf4"]), read_preset("zero1"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["adapters=full"], "model.quantize: int8 with adapters: full, allowed: none"),
        (["adapters=lora+modules"], r"with adapters: lora\+modules, allowed: none"),
        (["lora.dora=true"], "lora.dora: true with model.quantize: int8, allowed: false"),
        (["learner.deepspeed=zero3"], "ZeRO stage 3, allowed: stage 1 or 2"),
    ],
)
def test_what_cannot_go_together_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=line):
        config = load_config("shapes", ["model.quantize=int8", *overrides])
        check_options(config, read_preset(config.learner.deepspeed))


def test_an_unknown_kind_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"model.quantize: .*int4"):
        load_config("shapes", ["model.quantize=int4"])
    assert shown_values(load_config("shapes", []))["encoder"]["quantize"] == "none"
