"""The planner against the figures that were traced at real size with fake tensors (1024 x 1024)."""

from __future__ import annotations

import pytest

from dopsd.config import load_config
from dopsd.models.lora.factors import Factors
from dopsd.plan import make_plan
from dopsd.plan.velocity import Adapter, Shape, activations, flops

GIB = 2**30
Z, K4, K9 = "z_image_turbo_lora", "flux2_klein_4b_edit_lora", "flux2_klein_9b_edit_lora"
KREA, QWEN = "krea2_turbo_vlm_lora", "qwen_image_vlm_lora"
LORA = Adapter("default", Factors(64))
IMAGE = 4096
"""Tokens of 1024 x 1024 pixels."""

# (recipe, rows, image tokens, text tokens, learns, checkpointing, extra peak GiB, TFLOP) of one
# state, or of the four of a teacher.
TRACED = [
    (Z, 1, IMAGE, 128, False, False, 0.48, 57.8),
    (Z, 4, IMAGE, 640, False, False, 2.2, 263.7),
    (Z, 4, IMAGE, 1024, False, False, 2.3, 288.7),
    (Z, 1, IMAGE, 128, True, True, 2.3, 187.5),
    (Z, 1, IMAGE, 128, True, False, 33.9, 129.7),
    (Z, 4, IMAGE, 128, True, True, 9.1, 750),
    (K4, 1, IMAGE, 512, False, False, 0.58, 35.0),
    (K4, 4, IMAGE, 1024, False, False, 2.6, 158.8),
    (K4, 4, 2 * IMAGE, 512, False, False, 4.4, 308.1),
    (K4, 1, IMAGE, 512, True, True, 1.7, 114.6),
    (K4, 1, IMAGE, 512, True, False, 14.3, 79.6),
    (K4, 1, 2 * IMAGE, 512, True, True, 3.2, 265.7),
    (K4, 4, 3 * IMAGE, 512, False, False, 6.6, 517.5),
    (K9, 1, IMAGE, 512, False, False, 0.8, 75.9),
    (K9, 4, 2 * IMAGE, 512, False, False, 5.9, 647.9),
    (K9, 1, IMAGE, 512, True, True, 2.5, 244.1),
    (K9, 1, IMAGE, 512, True, False, 24.4, 168.3),
    # Of these, blocks beyond the fourth are by arithmetic: each adds as much as the one before.
    (KREA, 1, IMAGE, 128, False, False, 0.715, 117.2),
    (KREA, 1, IMAGE, 1024, False, False, 0.877, 149.4),
    (KREA, 1, IMAGE, 128, True, False, 35.2, 254.4),
    (KREA, 1, IMAGE, 128, True, True, 3.3, 371.0),
    (KREA, 1, IMAGE, 1024, True, True, 6.84, 471.8),
    (QWEN, 1, IMAGE, 128, False, False, 0.679, 69.5),
    (QWEN, 1, IMAGE, 128, True, False, 32.3, 153.5),
    (QWEN, 1, IMAGE, 1024, True, True, 2.71, 272.8),
]


@pytest.mark.parametrize("row", TRACED, ids=lambda row: "-".join(map(str, row[:6])))
def test_memory_and_flops_of_a_velocity(row: tuple) -> None:
    recipe, rows, image, text, learns, checkpointing, gib, tflop = row
    model, shape = make_plan(load_config(recipe)).base.transformer, Shape(rows, image, text)
    assert flops(model, shape, LORA, learns, checkpointing) == pytest.approx(tflop * 1e12, rel=0.05)
    peak = activations(model, shape, LORA, 2, learns, checkpointing)
    assert peak == pytest.approx(gib * GIB, rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "billions", "lora", "all_linear"),
    [
        (Z, 6.155, 158.8, None),
        (K4, 3.876, 37.36, 96.34),
        (K9, 9.079, 79.69, 174.1),
        (KREA, 12.82, 205.2, 228.5),
        (QWEN, 7.115, 167.8, 167.8),
    ],
)
def test_parameters(recipe: str, billions: float, lora: float, all_linear: float | None) -> None:
    model = make_plan(load_config(recipe)).base.transformer
    assert model.weights == pytest.approx(billions * 1e9, rel=1e-3)
    assert model.lora_weights("default", Factors(64)) == pytest.approx(lora * 1e6, rel=1e-3)
    if all_linear:
        assert model.lora_weights("all-linear", Factors(64)) == pytest.approx(
            all_linear * 1e6, rel=1e-3
        )


@pytest.mark.parametrize(
    ("recipe", "checkpointing", "ranks", "gib"),
    [
        (Z, True, 4, 15.4),
        (Z, True, 1, 16.7),
        (Z, False, 4, 47.5),
        (K4, True, 4, 9.3),
        (K4, False, 4, 22),
        (K9, True, 4, 20.2),
        (K9, False, 4, 42),
    ],
)
def test_the_whole_of_a_learner(recipe: str, checkpointing: bool, ranks: int, gib: float) -> None:
    # The table's text is 128 tokens; the planner's own is the limit.
    text = ["context.text_tokens=128"] if recipe == Z else []
    demand = make_plan(load_config(recipe, text)).demand
    learner = demand.learner(ranks, fused=False, checkpointing=checkpointing)
    assert learner.memory == pytest.approx(gib * GIB, rel=0.05)


def test_bytes_of_a_step() -> None:
    dedicated = ["inference.shared=false", "rollout.workers=2", "teacher.workers=1"]
    traffic = make_plan(load_config(Z, dedicated)).traffic
    assert traffic.contexts == pytest.approx(17e6, rel=0.05)
    assert traffic.states == pytest.approx(21e6, rel=0.05)
    assert traffic.batches == pytest.approx(40e6, rel=0.06)
    assert traffic.published == pytest.approx(635e6, rel=0.05)
    assert traffic.read == pytest.approx(950e6, rel=0.05)


@pytest.mark.parametrize(("recipe", "fused"), [(Z, 2.7), (K4, 3.9), (K9, 3.9)])
def test_fused_against_the_first_split(recipe: str, fused: float) -> None:
    """1 encoder, 2 rollout, 1 teacher, 4 learners with checkpointing, against 8 fused learners."""
    first = [
        "inference.shared=false",
        *(f"{role}.gpus=1" for role in ("encoder", "rollout", "teacher")),
        "rollout.workers=2",
        "learner.gradient_checkpointing=true",
    ]
    plan = make_plan(load_config(recipe, first))
    (best,) = [split for split in plan.best if split.kind == "fused"]
    assert plan.shipped.bottleneck.name == "teacher"
    gained = best.images_per_gpu_second / plan.shipped.images_per_gpu_second
    assert gained == pytest.approx(fused, rel=0.05)
