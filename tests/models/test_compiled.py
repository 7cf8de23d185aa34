"""Compiled blocks compute what the others do. They are traced, and their backward with them, but
not lowered to machine code, but by a nightly test: that takes minutes on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dopsd.models import FAMILIES, ZImage
from dopsd.models.checkpointing import checkpoint_every
from dopsd.models.compiled import compile_blocks
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.models.rotary import use_real_rotary
from dopsd.records import Context
from tests.helpers.tiny import LATENT, make_context, make_transformer
from tests.helpers.tiny_flux2 import make_flux2_context, make_flux2_transformer


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_blocks_give_the_same_velocities() -> None:
    results = []
    for compiled in (False, True):
        transformer = make_transformer()
        if compiled:
            compile_blocks(transformer, backend="eager")
            assert transformer.layers[0]._compiled_call_impl is not None
        for rows in ((5, 34), (40,)):
            latents = torch.randn(len(rows), *LATENT, generator=torch.Generator().manual_seed(0))
            sigma = torch.full((len(rows),), 0.7)
            with torch.no_grad():
                results.append(
                    ZImage.velocity(None, transformer, latents, sigma, make_context(rows, 0))
                )
    torch.testing.assert_close(results[2:], results[:2], atol=1e-5, rtol=1e-5)


def z_image(side: int, tokens: int) -> tuple[Tensor, Context]:
    latents = torch.randn(2, LATENT[0], side, 16, generator=torch.Generator().manual_seed(side))
    return latents, make_context((tokens, tokens), tokens)


def flux2(side: int, tokens: int) -> tuple[Tensor, Context]:
    channels = make_flux2_transformer().config.in_channels
    latents = torch.randn(2, channels, side, 8, generator=torch.Generator().manual_seed(side))
    return latents, make_flux2_context(2, tokens, tokens=tokens)


FAMILY: dict[str, tuple[Any, Any]] = {
    "z_image": (make_transformer, z_image),
    "flux2_klein": (make_flux2_transformer, flux2),
}
BUCKETS = ((8, 40), (12, 40), (16, 70), (10, 33))
"""Sides of latents and tokens of texts."""


class Learner:
    """A student with its LoRA, as the learners build it."""

    def __init__(self, family: str, every: int, backend: str | None) -> None:
        make, self._inputs = FAMILY[family]
        self._family = FAMILIES[family]
        self.transformer = make()
        targets = resolve_targets(self.transformer, "default", self._family.lora_targets)
        inject(self.transformer, targets, 4, 8, 0)
        self.trained = adapter_parameters(self.transformer, STUDENT)
        generator = torch.Generator().manual_seed(2)
        for parameter in self.trained.values():  # B is zero at first, and with it A's gradient
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
            parameter.requires_grad_(True)
        checkpoint_every(self.transformer, every)
        if backend:
            compile_blocks(self.transformer, backend=backend)
        else:  # as compiled blocks have it, so that bits can be compared (test_rotary)
            use_real_rotary(self.transformer)

    def gradients(self, side: int, tokens: int) -> dict[str, Tensor]:
        latents, context = self._inputs(side, tokens)
        sigma = torch.full((len(latents),), 0.7)
        family = self._family.__new__(self._family)
        velocity = family.velocity(self.transformer, latents, sigma, context)
        grads = torch.autograd.grad(velocity.square().mean(), list(self.trained.values()))
        return dict(zip(self.trained, grads))


@pytest.mark.parametrize(
    ("family", "every"),
    [
        ("z_image", 1),
        pytest.param("z_image", 0, marks=pytest.mark.nightly),
        pytest.param("flux2_klein", 0, marks=pytest.mark.nightly),
    ],
)
def test_gradients_are_the_same_and_no_bucket_compiles_anew(family: str, every: int) -> None:
    """A shape whose sides are equal by chance may be compiled apart; past it nothing is."""
    counters.clear()
    plain, compiled = (Learner(family, every, way) for way in (None, "aot_eager"))
    graphs = []
    for bucket in BUCKETS:
        expected = plain.gradients(*bucket)
        for name, gradient in compiled.gradients(*bucket).items():
            assert torch.equal(gradient, expected[name]), (name, bucket)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and not counters["graph_break"]
    assert graphs[1:] == [graphs[1]] * (len(BUCKETS) - 1), graphs
    assert graphs[1] <= 3 * len(compiled.transformer._repeated_blocks), graphs


@pytest.mark.nightly
def test_inductor_generates_all_code_of_a_block_and_none_for_a_bucket() -> None:
    """The default backend: it warns of what it leaves to others' kernels, such as complex numbers.
    With its C++ compiler, two minutes of CPU."""
    counters.clear()
    plain, compiled = (Learner("z_image", 0, way) for way in (None, "inductor"))
    graphs = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*complex operators.*")
        for bucket in BUCKETS[:3]:
            found = compiled.gradients(*bucket)
            torch.testing.assert_close(found, plain.gradients(*bucket), rtol=1e-3, atol=1e-5)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and not counters["graph_break"]
    assert graphs[2] == graphs[1] <= 3 * len(compiled.transformer._repeated_blocks), graphs
