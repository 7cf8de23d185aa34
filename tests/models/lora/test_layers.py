"""LoRA adapters: which modules, which weights, who trains, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopsd.errors import ModelError
from dopsd.models import ZImage
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.checksum import checksum, sha256
from dopsd.models.lora.layers import (
    STUDENT,
    TEACHER,
    activate,
    adapter_parameters,
    bind_parameters,
    inject,
    lora_layers,
    resolve_targets,
)
from tests.helpers.paths import ROOT
from tests.helpers.tiny import (
    LATENT,
    LAYERS,
    REFINERS,
    make_context,
    make_transformer,
    random_state,
)

RANK, ALPHA = 8, 16
BLOCKS = LAYERS + 2 * REFINERS
"""The layers, and the refiners of noise and of context."""


def adapted(
    adapters: tuple[str, ...] = (STUDENT,),
    targets: list[str] | str = "default",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **variant: bool,
) -> nn.Module:
    transformer = make_transformer().to(dtype)
    matched = resolve_targets(transformer, targets, ZImage.lora_targets)
    inject(transformer, matched, RANK, ALPHA, seed, adapters, **variant)
    return transformer


def velocity(transformer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *LATENT, generator=generator)
    context = make_context((5, 34), 0).to("cpu", dtype)
    return ZImage.velocity(None, transformer, latents, torch.tensor([0.9, 0.5]), context)


def test_default_adapts_the_authors_list_and_nothing_else() -> None:
    expected = {
        f"{block}.{part}"
        for block in (
            *(f"layers.{i}" for i in range(LAYERS)),
            *(f"noise_refiner.{i}" for i in range(REFINERS)),
            *(f"context_refiner.{i}" for i in range(REFINERS)),
        )
        for part in (
            *(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
            *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
        )
    }
    assert len(expected) == 7 * BLOCKS
    for adapters in ((STUDENT,), (STUDENT, TEACHER)):
        transformer = adapted(adapters)
        assert {name for name, _ in lora_layers(transformer)} == expected
        for adapter in adapters:
            assert len(adapter_parameters(transformer, adapter)) == 2 * len(expected)


def test_all_linear_adapts_every_linear_module() -> None:
    linear = {n for n, m in make_transformer().named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) > 7 * BLOCKS
    transformer = adapted((STUDENT, TEACHER), "all-linear")
    assert {name for name, _ in lora_layers(transformer)} == linear


def test_the_report_counts_modules_by_target() -> None:
    matched = resolve_targets(
        make_transformer(), ["attention.to_q", "layers.1.feed_forward.w1"], ()
    )
    assert {target: len(names) for target, names in matched.items()} == {
        "attention.to_q": BLOCKS,
        "layers.1.feed_forward.w1": 1,
    }


def test_a_target_is_a_whole_suffix() -> None:
    """Neither a piece of a name nor a module that only holds linear ones."""
    for wrong in ("o_q", "to_out", "attention"):
        with pytest.raises(ModelError, match=wrong):
            resolve_targets(make_transformer(), [wrong], ())


def test_every_missing_target_is_named() -> None:
    with pytest.raises(ModelError) as error:
        resolve_targets(make_transformer(), ["attention.to_q", "ff.net.0.proj", "to_x"], ())
    line = str(error.value)
    assert line.startswith("lora.targets: ff.net.0.proj, to_x match no linear module")
    assert "\n" not in line
    with pytest.raises(ModelError, match=r"lora\.targets: empty"):
        resolve_targets(make_transformer(), [], ())


def test_init_is_gaussian_over_zero() -> None:
    transformer = adapted()
    base = velocity(make_transformer())
    torch.testing.assert_close(velocity(transformer), base)
    parameters = adapter_parameters(transformer, STUDENT)
    down = torch.cat([p.flatten() for n, p in parameters.items() if ".lora_A." in n]) * RANK
    up = torch.cat([p.flatten() for n, p in parameters.items() if ".lora_B." in n])
    assert not up.any()
    assert abs(down.mean()) < 0.05
    assert abs(down.std() - 1) < 0.05
    first, second = (parameters[f"layers.{i}.attention.to_q.lora_A.weight"] for i in (0, 1))
    assert not torch.allclose(first, second)


def test_init_is_a_function_of_the_seed_alone() -> None:
    reference = checksum(adapter_parameters(adapted(), STUDENT))
    torch.manual_seed(99)
    both = adapted((STUDENT, TEACHER))
    assert checksum(adapter_parameters(both, STUDENT)) == reference
    assert checksum(adapter_parameters(both, TEACHER)) == reference
    assert checksum(adapter_parameters(adapted(seed=1), STUDENT)) != reference
    # More targets do not move the weights of the others.
    wide = adapter_parameters(adapted(targets="all-linear"), STUDENT)
    names = adapter_parameters(adapted(), STUDENT)
    assert checksum({name: wide[name] for name in names}) == reference


def test_init_is_the_same_in_another_process() -> None:
    script = (
        "from tests.models.lora.test_layers import *\n"
        "print(checksum(adapter_parameters(adapted((TEACHER, STUDENT)), STUDENT)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split()[-1] == checksum(adapter_parameters(adapted(), STUDENT))


@pytest.mark.parametrize("adapters", [(STUDENT,), (STUDENT, TEACHER), (TEACHER, STUDENT)])
def test_only_the_student_trains(adapters: tuple[str, ...]) -> None:
    transformer = adapted(adapters)
    student = adapter_parameters(transformer, STUDENT)
    trainable = [p for p in transformer.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in student.values()}


def test_activate_switches_the_output_and_not_requires_grad() -> None:
    transformer = adapted((STUDENT, TEACHER))
    for seed, adapter in enumerate((STUDENT, TEACHER)):
        state = random_state(adapter_parameters(transformer, adapter), seed)
        bind_parameters(adapter_parameters(transformer, adapter), state)
    before = {name: p.requires_grad for name, p in transformer.named_parameters()}
    outputs = {}
    for adapter in (STUDENT, TEACHER, STUDENT, TEACHER):
        activate(transformer, adapter)
        assert {name: p.requires_grad for name, p in transformer.named_parameters()} == before
        output = velocity(transformer)
        assert output.requires_grad == (adapter == STUDENT)
        assert torch.equal(outputs.setdefault(adapter, output.detach()), output)
    assert (outputs[STUDENT] - outputs[TEACHER]).abs().mean() > 0.01
    # Each output is that of an adapter which is alone on its base.
    for seed, adapter in enumerate((STUDENT, TEACHER)):
        alone = adapted()
        bind_parameters(
            adapter_parameters(alone, STUDENT),
            random_state(adapter_parameters(alone, STUDENT), seed),
        )
        torch.testing.assert_close(velocity(alone), outputs[adapter])


def test_the_adapter_adds_alpha_over_r_times_b_a() -> None:
    transformer, plain = adapted(), make_transformer()
    state = random_state(adapter_parameters(transformer, STUDENT), 0)
    bind_parameters(adapter_parameters(transformer, STUDENT), state)
    with torch.no_grad():
        for name, _ in lora_layers(transformer):
            down, up = (state[f"{name}.lora_{part}.weight"] for part in "AB")
            plain.get_submodule(name).weight += ALPHA / RANK * up @ down
    merged = velocity(plain)
    assert (merged - velocity(make_transformer())).abs().mean() > 0.01
    torch.testing.assert_close(velocity(transformer), merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_rank_stabilized_and_dora_by_their_formulas(dora: bool) -> None:
    """W + alpha / sqrt(r) B A; in DoRA each of its rows is then scaled to its magnitude."""
    transformer, plain = adapted(rank_stabilized=True, dora=dora), make_transformer()
    state = random_state(adapter_parameters(transformer, STUDENT), 0)
    bind_parameters(adapter_parameters(transformer, STUDENT), state)
    with torch.no_grad():
        for name, _ in lora_layers(transformer):
            down, up = (state[f"{name}.lora_{part}.weight"] for part in "AB")
            weight = plain.get_submodule(name).weight
            weight += ALPHA / RANK**0.5 * up @ down
            if dora:
                magnitude = state[f"{name}.lora_magnitude_vector"]
                weight *= (magnitude / weight.norm(dim=1))[:, None]
    torch.testing.assert_close(velocity(transformer), velocity(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_begins_as_the_base(dtype: torch.dtype) -> None:
    transformer = adapted((STUDENT, TEACHER), dtype=dtype, dora=True)
    names = {name for name in adapter_parameters(transformer, STUDENT) if "magnitude" in name}
    assert len(names) == 7 * BLOCKS
    base = velocity(make_transformer().to(dtype), dtype)
    assert torch.equal(velocity(transformer, dtype), base)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_dtypes_train(dtype: torch.dtype, dora: bool) -> None:
    transformer = adapted((STUDENT, TEACHER), dtype=dtype, dora=dora)
    assert {p.dtype for p in transformer.parameters()} == {dtype}
    state = random_state(adapter_parameters(transformer, STUDENT), 0)
    bind_parameters(adapter_parameters(transformer, STUDENT), state)
    velocity(transformer, dtype).square().mean().backward()
    for name, parameter in adapter_parameters(transformer, STUDENT).items():
        assert parameter.dtype == dtype
        torch.testing.assert_close(parameter.detach(), state[name].to(dtype))
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dora", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(dora: bool) -> None:
    results = []
    for every in (0, 1, 2):
        transformer = adapted((STUDENT, TEACHER), dora=dora)
        bind_parameters(
            adapter_parameters(transformer, STUDENT),
            random_state(adapter_parameters(transformer, STUDENT), 0),
        )
        checkpoint_every(transformer, every)
        output = velocity(transformer)
        output.square().mean().backward()
        results.append({n: p.grad for n, p in adapter_parameters(transformer, STUDENT).items()})
    for again in results[1:]:
        torch.testing.assert_close(again, results[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("every", [0, 1, 2, 3, 9])
def test_every_nth_block_is_computed_again(every: int) -> None:
    transformer: Any = adapted((STUDENT,))
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    checkpoint_every(transformer, every)
    calls: list[int] = []
    for number, block in enumerate(blocks):
        # A hook after the forward is skipped where the recomputation stops early.
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    velocity(transformer).square().mean().backward()
    assert len(calls) - len(blocks) == (len(range(0, len(blocks), every)) if every else 0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s.pop("layers.0.attention.to_q.lora_A.weight"), r"1 tensors missing.*to_q"),
        (lambda s: s.update({"layers.9.w.lora_A.weight": torch.zeros(1)}), r"1 fit no.*layers\.9"),
        (
            lambda s: s.update({"layers.0.attention.to_q.lora_A.weight": torch.zeros(4, 64)}),
            r"layers\.0\.attention\.to_q\.lora_A\.weight is \[4, 64\], expected \[8, 64\]",
        ),
    ],
)
def test_bind_refuses_what_does_not_fit_and_changes_nothing(change, line: str) -> None:
    transformer = adapted()
    before = checksum(adapter_parameters(transformer, STUDENT))
    state = random_state(adapter_parameters(transformer, STUDENT), 0)
    change(state)
    with pytest.raises(ModelError, match=line):
        bind_parameters(adapter_parameters(transformer, STUDENT), state)
    assert checksum(adapter_parameters(transformer, STUDENT)) == before


@pytest.mark.parametrize("digest", [checksum, sha256])
def test_a_digest_sees_one_value_one_name_one_dtype_and_no_order(
    digest: Callable[[dict[str, Tensor]], str],
) -> None:
    state = {"a": torch.zeros(3, 4), "b": torch.ones(2)}
    reference = digest(state)
    assert len(reference) == 64
    assert digest(dict(reversed(state.items()))) == reference
    assert digest({"a": torch.zeros(4, 3).T, "b": torch.ones(2)}) == reference
    changed = torch.zeros(3, 4)
    changed[2, 3] = 1e-38
    others = [
        {**state, "a": changed},
        {**state, "a": torch.zeros(4, 3)},
        {**state, "a": torch.zeros(3, 4).bfloat16()},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    assert len({reference, *map(digest, others)}) == 6
    assert digest({"a": torch.ones(2).bfloat16()}) != digest({"a": torch.zeros(2).bfloat16()})
    assert digest({"a": torch.tensor(1.0)}) != digest({"a": torch.tensor(2.0)})
