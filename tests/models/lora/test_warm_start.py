"""`lora.init`: what a run begins from, in every spelling; and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dopsd.config import RunConfig, load_config
from dopsd.errors import ConfigError, ModelError
from dopsd.export import lora_file, lora_metadata
from dopsd.learner.student import build_student
from dopsd.models import FAMILIES
from dopsd.models.lora.digests import with_digests
from dopsd.models.lora.layers import STUDENT, TEACHER, activate
from dopsd.models.lora.warm_start import initial_lora
from dopsd.models.trained import TrainableParameters
from tests.helpers.tiny import LATENT, make_config, make_context, random_state

RANK, ALPHA = 4, 8.0
TARGETS = ["attention.to_q", "feed_forward.w2"]


class Begun:
    """A config that begins from a file, and what its student and teacher compute."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.family = FAMILIES["z_image"](str(base))
        self.bare = TrainableParameters(self.config(None), self.family)
        self.modules = self.bare.adapted(self.family.skeleton())
        student = build_student(self.config(None), self.family, "cpu", with_teacher=False)
        parameters = student.trained.parameters(student.transformer, STUDENT)
        self.state = random_state(parameters, 3)
        """Of a LoRA of alpha ALPHA."""
        self.noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
        self.context = make_context((9, 36), 0)

    def config(self, init: Path | None, alpha: float = 2.0, **lora: Any) -> RunConfig:
        section = {"rank": RANK, "alpha": alpha, "targets": TARGETS, **lora}
        return make_config(self.base, lora=section | {"init": init and str(init)})

    def written(self, name: str, tensors: dict[str, Tensor]) -> Path:
        path = self.folder / name / "lora.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        return path

    def spelled(self, prefix: str) -> dict[str, Tensor]:
        """With alpha / r in B."""
        return {
            prefix + name: tensor * (ALPHA / RANK if "lora_B" in name else 1)
            for name, tensor in self.state.items()
        }

    @torch.no_grad()
    def velocities(self, config: RunConfig) -> list[Tensor]:
        student = build_student(with_digests(config), self.family, "cpu", with_teacher=True)
        found = []
        for adapter in (STUDENT, TEACHER):
            activate(student.transformer, adapter)
            found.append(self.velocity(student.transformer))
        return found

    @torch.no_grad()
    def velocity(self, transformer: Any) -> Tensor:
        sigma = torch.tensor([0.9, 0.4])
        return self.family.velocity(transformer, self.noise, sigma, self.context)


@pytest.fixture
def begun(tiny_base: Path, tmp_path: Path) -> Begun:
    return Begun(tiny_base, tmp_path)


def test_student_and_teacher_begin_as_peft_loads_it_in_every_spelling(begun: Begun) -> None:
    transformer = begun.family.load_transformer(torch.float32, "cpu")
    base = begun.velocity(transformer)
    settings = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=begun.modules)
    model = peft.get_peft_model(transformer, settings)
    peft.set_peft_model_state_dict(
        model, {f"base_model.model.{name}": tensor for name, tensor in begun.state.items()}
    )
    expected = begun.velocity(transformer)
    assert (expected - base).abs().max() > 0.01
    model.save_pretrained(begun.folder / "peft")
    kohya = {}
    for name, tensor in begun.state.items():
        module, _, part = name.partition(".lora_")
        stem = f"lora_unet_{module.replace('.', '_')}"
        kohya[f"{stem}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = tensor
        kohya[f"{stem}.alpha"] = torch.tensor(ALPHA)
    own = begun.folder / "own.safetensors"
    own.write_bytes(lora_file(begun.state, RANK, ALPHA, {}))
    for file in (
        own,
        begun.written("kohya", kohya),
        begun.written("comfy", begun.spelled("diffusion_model.")),
        begun.folder / "peft" / "adapter_model.safetensors",
    ):
        for alpha in (2.0, 64.0):  # the run's own is another strength, or the same
            for found in begun.velocities(begun.config(file, alpha)):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_file_that_does_nothing_is_no_start_but_for_a(begun: Begun) -> None:
    state = {n: t * (0 if "lora_B" in n else 1) for n, t in begun.state.items()}
    file = begun.written("zero", {f"transformer.{n}": t for n, t in state.items()})
    without = begun.velocities(begun.config(None))
    for found, base in zip(begun.velocities(begun.config(file)), without):
        assert torch.equal(found, base)
    config = begun.config(file)
    student = build_student(config, begun.family, "cpu", with_teacher=False)
    for name, parameter in student.trained.parameters(student.transformer, STUDENT).items():
        assert torch.equal(parameter, state[name]) and parameter.requires_grad
        assert torch.equal(student.start[name], state[name])


def test_dora_and_rslora_begin_too(begun: Begun) -> None:
    variant = {"dora": True, "rank_stabilized": True}
    config = begun.config(None, ALPHA, **variant)
    student = build_student(config, begun.family, "cpu", with_teacher=False)
    parameters = student.trained.parameters(student.transformer, STUDENT)
    state = random_state(parameters, 5)
    student.trained.bind(student.transformer, STUDENT, state)
    file = begun.folder / "dora.safetensors"
    file.write_bytes(lora_file(state, RANK, ALPHA, {}, rank_stabilized=True))
    for found in begun.velocities(begun.config(file, 2.0, **variant)):
        torch.testing.assert_close(found, begun.velocity(student.transformer), atol=1e-6, rtol=1e-6)
    with pytest.raises(ModelError, match=r"with DoRA's magnitudes, lora\.dora is false"):
        begun.velocities(begun.config(file))


def test_what_does_not_fit_is_one_line_that_says_n_of_m(begun: Begun) -> None:
    whole, count = begun.spelled("transformer."), len(begun.modules)
    first = begun.modules[0]
    keys = [f"transformer.{first}.lora_{part}.weight" for part in "AB"]
    without = {name: t for name, t in whole.items() if name not in keys}
    elsewhere = {name.replace(first, "layers.9.attention.to_q"): t for name, t in whole.items()}
    narrow = whole | {keys[0]: whole[keys[0]][:, 1:]}
    cases = {
        f"{count - 1} of {count} modules fit (not layers.9.attention.to_q)": elsewhere,
        f"{count - 1} of {count} modules fit (not {first})": narrow,
        f"lora.targets names {count} (also {first})": without,
        "0 of 0 modules fit": {},
        f"{keys[0]} is not finite": whole | {keys[0]: whole[keys[0]] * float("nan")},
    }
    skeleton = begun.family.skeleton()
    for number, (message, tensors) in enumerate(cases.items()):
        file = begun.written(f"{number}", tensors)
        with pytest.raises(ModelError) as error:
            initial_lora(TrainableParameters(begun.config(file), begun.family), skeleton)
        assert message in str(error.value) and str(error.value).startswith(f"lora.init: {file}: ")
        assert "\n" not in str(error.value)
    file = begun.written("whole", whole)
    with pytest.raises(ModelError, match=r"of rank 4, lora\.rank is 8"):
        initial_lora(TrainableParameters(begun.config(file, rank=8), begun.family), skeleton)
    recipe = {"dopsd.recipe": "dopsd K=4 rank=4 alpha=8 modules=norms seed=0"}
    save_file(load_file(file), file, metadata=recipe)
    with pytest.raises(ModelError, match="trained with modules beside it"):
        initial_lora(TrainableParameters(begun.config(file), begun.family), skeleton)
    with pytest.raises(ModelError, match="no such file"):
        with_digests(begun.config(begun.folder / "gone.safetensors"))
    for adapters in ("full", "lora+modules"):
        with pytest.raises(ConfigError, match=r"^lora\.init: given with adapters: "):
            load_config(None, ["data.source=x", "lora.init=a", f"adapters={adapters}"])


def test_another_file_under_the_same_path_is_told(begun: Begun) -> None:
    file = begun.written("a", begun.spelled("transformer."))
    config = with_digests(begun.config(file))
    assert with_digests(config) == config
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match=r"^lora\.init: .*: its SHA-256 is .*another file than"):
        with_digests(config)
    with pytest.raises(ModelError, match=r"^lora\.init: .*another file than"):  # in a worker
        build_student(config, begun.family, "cpu", with_teacher=False)
    peft_file = begun.written("p", begun.spelled("base_model.model."))
    beside = peft_file.parent / "adapter_config.json"
    beside.write_text('{"r": 4, "lora_alpha": 4}')
    config = with_digests(begun.config(peft_file))
    beside.write_text('{"r": 4, "lora_alpha": 8}')  # which is twice as strong
    with pytest.raises(ModelError, match="another file than"):
        with_digests(config)


def test_the_exported_file_says_what_it_began_from(begun: Begun) -> None:
    file = begun.written("a", begun.spelled("transformer."))
    config = with_digests(begun.config(file))

    class Data:
        fingerprint = "data"

    metadata: Any = lora_metadata(config, Data())  # type: ignore[arg-type]
    record = json.loads(metadata["dopsd.init"])
    assert record == {"file": "lora.safetensors", "sha256": config.lora.init_sha256}
    assert str(begun.folder) not in json.dumps(metadata)
    assert "dopsd.init" not in lora_metadata(begun.config(None), Data())  # type: ignore[arg-type]
