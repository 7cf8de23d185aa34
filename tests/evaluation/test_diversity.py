"""Diversity of drawings: a collapsed model is told from its base, and nothing is measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dopsd.data.pictures.images import encode_png
from dopsd.evaluation.diversity import DIVERSITY, Diversity, Drawings, distance_of
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.scoring import ImageEntry, ImageSet
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec, MetricChoice
from dopsd.evaluation.worker import EvaluationWorker
from tests.helpers.tiny import random_image

SEEDS = range(3)
PROMPTS = (EvalPrompt("a cat", "cat"), EvalPrompt("a mat", "cat"), EvalPrompt("a hat", "hat"))


class Pool:
    """A worker in this process, and how often it was asked."""

    def __init__(self, base: str) -> None:
        self.worker = EvaluationWorker(EvaluateSpec("out", PROMPTS, base=base), "cpu")
        self.asked = 0

    def run(self, jobs, keep) -> None:
        for job in jobs:
            self.asked += 1
            keep(job, getattr(self.worker, job.method)(*job.arguments))


@pytest.fixture
def sets(tmp_path) -> list[ImageSet]:
    """A base whose drawings differ, and a model whose drawings have three quarters in common."""
    found = []
    for model, spread in ((BASE, 1.0), ("tuned", 0.25)):
        images = [ImageEntry(p, seed, p.image_name(seed)) for p in PROMPTS for seed in SEEDS]
        image_set = ImageSet(EvaluatedModel(model), 4, f"{tmp_path}/pictures/{model}", images)
        for number, image in enumerate(images):
            own, common = (random_image(32, 32, n).astype(float) for n in (number, 99))
            pixels = common + spread * (own - common)
            path = Path(image_set.path(image))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(Image.fromarray(pixels.astype(np.uint8))))
        found.append(image_set)
    return found


def measured(sets, tiny_base, tmp_path) -> tuple[list[Diversity], int]:
    drawings, pool = Drawings(str(tmp_path), sets), Pool(str(tiny_base))
    drawings.add(pool, MetricChoice("latent", str(tiny_base)), lambda line: None)
    return drawings.all(), pool.asked


def test_drawings_that_have_become_alike_are_told(sets, tiny_base, tmp_path):
    found, asked = measured(sets, tiny_base, tmp_path)
    assert asked == 6
    rows = [(row.model, row.group, row.prompts, row.drawings, row.distance) for row in found]
    assert rows == [
        (model, group, prompts, 3, "latent")
        for model in (BASE, "tuned")
        for group, prompts in (("cat", 2), ("hat", 1))
    ]
    assert all(row.ratio is None for row in found[:2]) and found[0].value.value > 0
    cat, hat = found[2:]
    assert cat.ratio.high < 0.6 and hat.ratio.value < 0.6
    assert cat.ratio.value == pytest.approx(cat.value.value / found[0].value.value)


def test_a_prompts_value_is_the_mean_over_its_pairs(sets, tiny_base, tmp_path):
    found, _ = measured(sets, tiny_base, tmp_path)
    worker = EvaluationWorker(EvaluateSpec("out", PROMPTS, base=str(tiny_base)), "cpu")
    pngs = [Path(sets[0].path(image)).read_bytes() for image in sets[0].images[6:]]
    choice = MetricChoice("latent", str(tiny_base))
    pairs = [worker.apart(choice, [pngs[a], pngs[b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found[1].value.value == pytest.approx(np.mean(pairs))
    assert worker.apart(choice, [pngs[0], pngs[0]]) == 0


def test_what_is_measured_is_kept_and_damage_is_measured_anew(sets, tiny_base, tmp_path):
    first, _ = measured(sets, tiny_base, tmp_path)
    assert measured(sets, tiny_base, tmp_path) == (first, 0)
    path = next(Path(tmp_path, "scores").glob(f"{DIVERSITY}-latent-*/base.json"))
    record = json.loads(path.read_text())
    next(iter(record["scores"].values()))[DIVERSITY] = 0.5
    path.write_text(json.dumps(record))
    assert measured(sets, tiny_base, tmp_path) == (first, 3)


def test_one_drawing_of_each_prompt_has_no_diversity(sets, tmp_path):
    for image_set in sets:
        image_set.images = [image for image in image_set.images if image.seed == 0]
    assert not Drawings(str(tmp_path), sets)


def test_what_drawings_are_compared_by():
    dino, lpips = MetricChoice("dino", "there"), MetricChoice("lpips")
    assert distance_of([MetricChoice("sharpness"), lpips, dino], "base") == dino
    assert distance_of([lpips], "base") == lpips
    assert distance_of([MetricChoice("oracle")], "there") == MetricChoice("latent", "there")
