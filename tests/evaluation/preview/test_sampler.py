"""The run's own drawings of what is more than a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel

from dopsd.data.sample import Sample
from dopsd.evaluation.preview.sampler import BASE, PreviewSampler
from dopsd.export import lora_file
from dopsd.models import ZImage
from dopsd.models.lora.layers import STUDENT, TEACHER
from tests.helpers.tiny import make_config, random_image
from tests.models.test_transformer_folder import runs

__all__ = ["runs"]


def sampler_of(base: Path, **sections: object) -> PreviewSampler:
    config = make_config(base, method={"steps": 2}, **sections)
    samples = [Sample(f"{n}", "a red cat", random_image(32, 32, n)) for n in range(2)]
    return PreviewSampler(config, samples, "cpu")


def files(folder: Path, *names: str) -> list[Callable[[], bytes]]:
    return [partial((folder / name).read_bytes) for name in names]


def weights(sampler: PreviewSampler) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in sampler.pipeline.transformer.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("own", [False, True], ids=["the base teaches", "a teacher of its own"])
def test_whole_models_take_turns_in_one_transformer(own, tiny_base, runs) -> None:
    sampler = sampler_of(tiny_base, adapters="full")
    base = weights(sampler)
    folder = runs / "full" / "transformer"
    student = files(folder, *sorted(path.name for path in folder.glob("*.safetensors")))
    sampler.load(student, list(reversed(student)) if own else [])
    whole = dict(ZImageTransformer2DModel.from_pretrained(folder).named_parameters())
    for role, wanted in (
        (STUDENT, whole),
        (TEACHER, whole if own else base),
        (STUDENT, whole),
        (BASE, base),
    ):
        sampler.use(role)
        assert same(weights(sampler), wanted), role
    assert sampler.generate(0, BASE).tobytes() != sampler.generate(0, STUDENT).tobytes()


@pytest.mark.parametrize("drawn", [False, True])
def test_a_few_step_lora_is_drawn_with_where_that_is_asked_for(drawn, tiny_base, tmp_path) -> None:
    family = ZImage(str(tiny_base))
    name = "layers.0.attention.to_q"
    linear = family.skeleton().get_submodule(name)
    state = {
        f"{name}.lora_A.weight": torch.randn(2, linear.in_features),
        f"{name}.lora_B.weight": torch.randn(linear.out_features, 2),
    }
    path = tmp_path / "few-steps.safetensors"
    path.write_bytes(lora_file(state, 2, 2, {}))
    plain = sampler_of(tiny_base)
    found = sampler_of(tiny_base, model={"merge": [str(path)], "draw_merged": drawn})
    before, after = weights(plain), weights(found)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({f"{name}.weight"} if drawn else set())
    pictures = [sampler.generate(0, BASE).tobytes() for sampler in (plain, found)]
    assert (pictures[0] != pictures[1]) is drawn


def test_nothing_to_draw_with_is_one_line(tiny_base) -> None:
    with pytest.raises(ValueError, match=r"model\.draw_merged: true without model\.merge, allowed"):
        make_config(tiny_base, model={"draw_merged": True})


def test_modules_go_with_their_lora(tiny_base, runs) -> None:
    sampler = sampler_of(tiny_base, adapters="lora+modules", lora={"rank": 4, "alpha": 8})
    before = sampler.generate(0, BASE).tobytes()
    base = weights(sampler)
    both = files(runs / "modules", "lora.safetensors", "modules.safetensors")
    for _ in range(2):  # as two versions of a history
        sampler.load(both, both[:1])
        sampler.use(STUDENT)
        moved = [name for name, tensor in base.items() if not same_as(sampler, name, tensor)]
        assert moved and all(name.endswith("norm1.weight") for name in moved)
        sampler.use(BASE)
        assert all(same_as(sampler, name, tensor) for name, tensor in base.items())
    assert sampler.generate(0, BASE).tobytes() == before != sampler.generate(0, STUDENT).tobytes()


def same_as(sampler: PreviewSampler, name: str, tensor: torch.Tensor) -> bool:
    """Whether a weight is as it was; one that a LoRA adapts is no part of the question."""
    own = dict(sampler.pipeline.transformer.named_parameters())
    return name not in own or torch.equal(own[name], tensor)
