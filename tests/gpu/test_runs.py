"""Whole runs of the demo on one card, and what they export."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dopsd.config import load_config
from dopsd.driver.summary import Summary
from dopsd.driver.train import train
from dopsd.evaluation.generate import load_lora
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, bind_parameters
from dopsd.models.trained import TrainableParameters
from dopsd.ray_cluster.connect import end_local
from dopsd.records import Context
from tests.gpu.blocks import difference
from tests.helpers.runs import metrics, quiet

STEPS = 4
Record = Callable[[str, object], None]
SPLIT = ["encoder.gpus=0.2", "rollout.gpus=0.2", "teacher.gpus=0.2", "learner.gpus=0.4"]
FUSED = ["source=fused", "max_policy_lag=0", "encoder.gpus=0.4", "learner.gpus=0.6"]


@pytest.fixture(scope="module")
def trained(
    device: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Summary]]:
    """Trains the demo for a few steps, in bf16; Ray ends with the module."""

    def run(name: str, *overrides: str) -> Summary:
        folder = tmp_path_factory.mktemp(name)
        keys = [f"run.folder={folder}/run", f"learner.steps={STEPS}", "learner.workers=1"]
        keys += [f"device={device}", "model.dtype=bfloat16", "preview.samples=1"]
        keys += ["preflight.mode=off", "learner.global_batch=8", *overrides]
        return train(load_config("shapes", keys), quiet)

    yield run
    end_local()


def check(run: Summary, record_property: Record) -> None:
    lines = metrics(run)
    assert len(lines) == STEPS
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    last = lines[-1]
    record_property("s/step", f"{last['learner_seconds'] + last['learner_wait_seconds']:.2f}")
    record_property("publish", f"{last['learner_publish_seconds']:.3f} s")
    tensors = load_file(f"{run.folder}/lora.safetensors")
    assert tensors and all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_the_demo_disaggregated(trained: Any, record_property: Record) -> None:
    check(trained("disaggregated", *SPLIT), record_property)


def test_the_demo_fused(trained: Any, record_property: Record) -> None:
    check(trained("fused", *FUSED), record_property)


@pytest.mark.parametrize("kind", ["int8"])
def test_the_demo_fused_on_a_quantised_base(
    kind: str, trained: Any, record_property: Record
) -> None:
    pytest.importorskip("torchao", reason="of the extra `quantize`")
    check(trained(kind, *FUSED, f"model.quantize={kind}"), record_property)


def test_the_exported_lora_computes_as_the_student_does(
    trained: Any, device: str, record_property: Record
) -> None:
    run = trained("export", *FUSED)
    config = load_config("shapes", ["model.dtype=bfloat16"])
    family: Any = FAMILIES["z_image"](config.model.base)
    path = Path(run.folder) / "lora.safetensors"
    student = family.load_transformer(torch.bfloat16, device)
    parameters = TrainableParameters(config, family)
    parameters.prepare(student, (STUDENT,))
    exported = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    strength = config.lora.alpha / config.lora.rank  # which is folded into the file
    with torch.no_grad():
        bind_parameters(
            parameters.parameters(student, STUDENT),
            {k: v / (strength if ".lora_B." in k else 1.0) for k, v in exported.items()},
        )
    pipeline = family.load_pipeline(torch.bfloat16, device, text_encoder=False)
    load_lora(pipeline, str(path), path.read_bytes(), "lora")
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, *family.latent_shape(32, 32), generator=generator).to(device)
    width = family.part_config("transformer")["cap_feat_dim"]
    context = Context(
        {
            "embeds": torch.randn(1, 20, width, generator=generator),
            "lengths": torch.tensor([20]),
        }
    ).to(device, torch.bfloat16)
    sigma = torch.full((1,), 0.5, device=device)
    with torch.no_grad():
        ours, stock = (
            family.velocity(model, latents, sigma, context)
            for model in (student, pipeline.transformer)
        )
    record_property("difference", f"{difference(ours, stock):.1e}")
    assert difference(ours, stock) < 1e-2
