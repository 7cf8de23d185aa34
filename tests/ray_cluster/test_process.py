"""A process that computes on the CPU stays there on a machine with GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port

PRETENDED = ROOT / "tests" / "helpers" / "pretended_gpus"


def with_gpus() -> dict[str, str]:
    """The environment of a process that believes that the machine has GPUs."""
    names = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join([str(PRETENDED), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path}


def python(*words: str) -> str:
    """What a program of Python prints on a machine with GPUs."""
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=ROOT, env=with_gpus(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_deepspeed_takes_a_gpu_that_it_sees_and_too_late_is_said() -> None:
    late = (
        "import deepspeed\nfrom dopsd.ray_cluster.process import use_device\n"
        "try:\n    use_device('cpu')\nexcept RuntimeError as error:\n    print(error)"
    )
    assert "computes on cpu, but DeepSpeed chose cuda" in python("-c", late)


def test_a_learner_decides_before_deepspeed_does() -> None:
    look = (
        "import torch, dopsd.learner.train_loop as loop; loop.set_up('cpu')\n"
        "from deepspeed.accelerator import get_accelerator\n"
        "print(get_accelerator().device_name(), torch.cuda.is_available())"
    )
    assert python("-c", look).split()[-2:] == ["cpu", "False"]


BEGINNINGS = """
import sys, torch
from dopsd.config import load_config
base = sys.argv[1]
config = load_config(None, [f"model.base={base}", "model.dtype=float32", "device=cpu",
                            "data.source=shapes:bars", "context.image_max_pixels=4096",
                            "context.image_min_pixels=1024"])
def fresh():
    import os
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        os.environ.pop(name, None)
    assert torch.cuda.is_available()
def encoder():
    from dopsd.contexts import EncoderFactory
    return EncoderFactory(config, "cpu")().model
def rollout():
    from dopsd.rollout.worker import InferenceWorker
    return InferenceWorker(config, "cpu", ("student",)).transformer
def evaluation():
    from dopsd.evaluation.spec import EvaluateSpec
    from dopsd.evaluation.worker import EvaluationWorker
    spec = EvaluateSpec(out="", prompts=(), base=base, height=32, width=32)
    worker = EvaluationWorker(spec, "cpu")
    from dopsd.evaluation.spec import EvaluatedModel, BASE
    assert worker.generate(EvaluatedModel(BASE), ["a red cat"], [0], 1)
    return worker._sampler.pipeline.transformer
def preview():
    from dopsd.evaluation.preview.sampler import PreviewSampler
    return PreviewSampler(config, [], "cpu").pipeline.transformer
def writer():
    from dopsd.evaluation.dataset_prompts import PromptWriter
    PromptWriter("none", "cpu")
    return torch.nn.Linear(1, 1)
for begin in (encoder, rollout, evaluation, preview, writer):
    fresh()
    kinds = {parameter.device.type for parameter in begin().parameters()}
    print(begin.__name__, *kinds, torch.cuda.is_available())
"""


def test_every_role_stays_on_the_cpu(tiny_base: Path) -> None:
    lines = python("-c", BEGINNINGS, str(tiny_base)).splitlines()
    roles = ("encoder", "rollout", "evaluation", "preview", "writer")
    assert [line for line in lines if line.split()[0] in roles] == [
        f"{role} cpu False" for role in roles
    ]


@pytest.mark.integration
def test_a_learner_trains_on_the_cpu(tiny_base: Path, tmp_path: Path) -> None:
    words = ["0", "1", str(free_port()), str(tiny_base), str(tmp_path / "out"), "zero1:float32"]
    python("-m", "tests.learner.zero.zero_rank", *words)
    assert (tmp_path / "out").is_file()


FLAGS = """
import torch
from dopsd.ray_cluster.process import set_up
set_up("cuda", "{}")
print(torch.are_deterministic_algorithms_enabled(),
      torch.is_deterministic_algorithms_warn_only_enabled(),
      torch.utils.deterministic.fill_uninitialized_memory)
"""


@pytest.mark.parametrize("asked, enabled", [("off", "False"), ("strict", "True")])
def test_determinism_is_strict_or_off(asked: str, enabled: str) -> None:
    assert python("-c", FLAGS.format(asked)).split()[-3:] == [enabled, "False", "False"]
