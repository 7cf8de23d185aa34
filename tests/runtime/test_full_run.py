"""Whole runs of `dopsd train` in which more than a LoRA is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dopsd.export import read_lora
from dopsd.models import ZImage
from dopsd.runtime.launch import Summary, train
from dopsd.runtime.verify import verify_run
from tests.tiny import make_config, random_image

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

STEPS, EVERY = 3, 2


def start(tiny_base: Path, folder: Path, **sections: Any) -> Summary:
    images = folder / "images"
    images.mkdir()
    for number in range(4):
        Image.fromarray(random_image(32, 32, number)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"a red cat, number {number}")
    learner = {
        "workers": 2,
        "cpus": 0.3,
        "steps": STEPS,
        "global_batch": 4,
        "micro_batch": 2,
        "lr": 1e-3,
    }
    values: dict[str, Any] = {
        "run": {"folder": str(folder / "run")},
        "data": {"source": str(images), "pixel_area": 1024, "bucket_multiple": 8},
        "encoder": {"cpus": 0.2},
        "rollout": {"cpus": 0.2},
        "teacher": {"cpus": 0.2},
        "preview": {"samples": 0},
        "preflight": {"mode": "off"},
        "learner": learner | sections.pop("learner", {}),
        **sections,
    }
    return train(make_config(tiny_base, **values), lambda phase, status: None)


def transformer(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name].float() - other[name].float()).norm()) for name in other)


def lines(summary: Summary) -> list[dict[str, Any]]:
    text = (Path(summary.folder) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_all_weights_are_trained_published_and_exported(tiny_base: Path, tmp_path: Path) -> None:
    summary = start(
        tiny_base,
        tmp_path,
        adapters="full",
        method={"ema_decay": 0.9, "teacher_sync_every": EVERY},
        checkpoint={"every_steps": 0, "every_minutes": 0},
        learner={"deepspeed": "zero3", "bucket_mb": 1},
    )
    assert summary.lora is None and summary.problems == []
    assert summary.adapted == {"all weights": 73}
    assert [line["student_lag"] for line in lines(summary)] == [0, 0, 0]
    assert [line["teacher_lag"] for line in lines(summary)] == [0, 1, 0]
    assert verify_run(summary.folder).agrees

    folder = Path(summary.folder)
    assert summary.transformer == str(folder / "transformer")
    base = transformer(tiny_base / "transformer")
    student, teacher = (transformer(folder / n) for n in ("transformer", "teacher_transformer"))
    assert student.keys() == teacher.keys() == base.keys()
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1, "one file per bucket"
    assert 0 < distance(teacher, base) < 0.5 * distance(student, base)
    family = ZImage(str(tiny_base))
    pipeline = family.load_pipeline(torch.float32, "cpu", transformer=summary.transformer)
    loaded = dict(pipeline.transformer.named_parameters())
    assert all(torch.equal(loaded[name], student[name]) for name in student)


def test_norms_and_embedders_are_trained_beside_a_lora(tiny_base: Path, tmp_path: Path) -> None:
    summary = start(
        tiny_base,
        tmp_path,
        adapters="lora+modules",
        lora={"rank": 4, "alpha": 8},
        method={"ema_decay": 0.9},
        learner={"workers": 1},
    )
    assert summary.problems == [] and summary.transformer is None
    assert summary.adapted["norms"] > 8 and summary.adapted["embedders"] > 4
    base = transformer(tiny_base / "transformer")
    modules = load_file(str(summary.modules))
    teacher = load_file(str(Path(summary.folder) / "teacher_modules.safetensors"))
    assert modules.keys() == teacher.keys() < base.keys()
    assert all((modules[name] != base[name]).any() for name in modules)
    assert distance(teacher, {n: base[n] for n in teacher}) < distance(
        modules, {n: base[n] for n in modules}
    )
    ups = [t for n, t in read_lora(str(summary.lora)).items() if ".lora_B." in n]
    assert all(up.abs().max() > 0 for up in ups)
    assert verify_run(summary.folder).agrees
