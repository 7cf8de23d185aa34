"""Metrics on inputs whose answer is known; encoders are real classes with random weights."""

from __future__ import annotations

import importlib.util
import random

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageFilter import GaussianBlur
from transformers import CLIPModel, Dinov2Model

from dopsd.errors import ConfigError
from dopsd.evaluation.metrics import DISTANCES, METRICS, make_distance, make_metric
from dopsd.evaluation.metrics.base import MetricInput
from dopsd.models.pretrained import MissingWeights
from dopsd.shapes import world
from dopsd.shapes.grid import to_image
from tests.evaluation.tiny import image_processor, picture
from tests.helpers.tiny import make_tokenizer


@pytest.fixture
def loaded(clip_folder, dino_folder):
    def load(name: str):
        metric = make_metric(name, {"clip": str(clip_folder), "dino": str(dino_folder)}.get(name))
        metric.check()
        metric.load()
        return metric

    return load


AVAILABLE = [name for name in DISTANCES if name != "lpips"]


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_picture_is_at_distance_0_from_itself_and_farther_from_another(name, loaded):
    metric = loaded(name)
    scenes = [
        world.sample_scene(random.Random(0), shape="square", pattern="flat"),
        world.sample_scene(random.Random(1), shape="ring", pattern="bars"),
    ]
    first, second = (to_image(image) for image in world.render(scenes))
    same, other = metric.distance([first, first], [first, second])
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 1e-4


def test_dino_is_the_cosine_of_class_tokens(dino_folder, loaded):
    metric = loaded("dino")
    images = [picture(seed) for seed in range(3)]
    model = Dinov2Model.from_pretrained(dino_folder).eval()
    pixels = image_processor()(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        a, b, c = model(pixels).last_hidden_state[:, 0].numpy()

    def cosine(x, y):
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    shown = [MetricInput(images[0], targets=(images[1], images[2])), MetricInput(images[1])]
    values = metric.measure(shown)
    assert values[0]["dino"] == pytest.approx((cosine(a, b) + cosine(a, c)) / 2, abs=1e-5)
    assert values[1] == {}


def test_clip_s_is_the_cosine_of_picture_and_prompt(clip_folder, loaded):
    metric = loaded("clip")
    image, prompts = picture(0), ["a red cat", "a blue mat " * 20]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = make_tokenizer()(
        prompts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    pixels = image_processor()(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    expected = (output.image_embeds @ output.text_embeds.T)[0].tolist()
    values = metric.measure([MetricInput(image, prompt) for prompt in prompts])
    assert [value["clip_s"] for value in values] == pytest.approx(expected, abs=1e-5)


def sharpness(pixels: np.ndarray) -> float:
    shown = MetricInput(Image.fromarray(pixels.round().astype(np.uint8)))
    return make_metric("sharpness").measure([shown])[0]["sharpness"]


def test_sharpness_by_hand():
    assert sharpness(np.full((8, 8, 3), (90, 10, 200))) == 0
    stripes = np.zeros((5, 6, 3))
    stripes[:, ::2] = 255
    # Across each column |2 Y - left - right| = 2, down nothing; the columns lie 0.5 off the mean.
    assert sharpness(stripes) == pytest.approx(4, abs=1e-4)


def test_sharpness_falls_with_blur_and_with_lost_grain_but_not_with_contrast():
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(60, 196, (8, 8, 3)), np.ones((8, 8, 1)))
    grain = rng.choice([-24, 24], (64, 64, 1)) + np.zeros(3)
    image = Image.fromarray((scene + grain).astype(np.uint8))
    blurred = [np.asarray(image.filter(GaussianBlur(radius))) for radius in (0.5, 1, 2)]
    values = [sharpness(pixels) for pixels in (scene + grain, *blurred)]
    assert values == sorted(values, reverse=True) and values[2] < values[0] / 3
    assert sharpness(scene + grain / 4) < values[0] / 2, "its edges are as they were"
    assert sharpness(30 + (scene + grain) / 3) == pytest.approx(values[0], rel=0.02)


def test_the_oracle_counts_what_the_prompt_names():
    rng = random.Random(3)
    scene = world.sample_scene(rng, pattern="bars")
    image = to_image(world.render([scene])[0])
    blur = image.resize((4, 4)).resize((32, 32))
    right = {"pattern": "bars", "fill": scene.fill}
    wrong = {"pattern": "bars", "fill": next(n for n in world.FILLS if n != scene.fill)}
    oracle = make_metric("oracle")
    hit, half, blurred, plain = oracle.measure(
        [
            MetricInput(image, expected=right, concept="pattern"),
            MetricInput(image, expected=wrong, concept="pattern"),
            MetricInput(blur, expected=right, concept="pattern"),
            MetricInput(image),
        ]
    )
    assert (hit["concept"], hit["ok"], hit["named"]) == (1, 1, 1)
    assert (half["concept"], half["ok"], half["named"]) == (1, 0, 0.5)
    assert (blurred["concept"], blurred["ok"]) == (0, 0)
    assert blurred["palette_error"] > 10 * hit["palette_error"]
    assert plain.keys() == {"palette_error"}


@pytest.mark.parametrize("name", ["clip", "dino"])
@pytest.mark.parametrize("model", ["./nowhere", "nobody/nothing"])
def test_missing_weights_are_one_line_that_names_them(name, model):
    with pytest.raises(MissingWeights, match=f"{name}: {model}") as caught:
        make_metric(name, model).check()
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_no_weights_are_missing(tmp_path, dino_folder):
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    metric = make_metric("dino", str(tmp_path))
    metric.check()
    with pytest.raises(MissingWeights, match=r"dino: .* is not available"):
        metric.load()


@pytest.mark.skipif(bool(importlib.util.find_spec("torchvision")), reason="torchvision is here")
def test_lpips_says_what_it_lacks():
    with pytest.raises(MissingWeights, match=r"lpips: torch(metrics|vision) is not installed"):
        make_metric("lpips").check()


def test_unknown_metrics_are_refused():
    with pytest.raises(ConfigError, match="metric 'fid': unknown, allowed: oracle"):
        make_metric("fid")
    with pytest.raises(ConfigError, match="distance 'sharpness': unknown"):
        make_distance("sharpness")


def test_every_metric_names_its_columns_once():
    names = [column for metric in METRICS.values() for column in metric.columns]
    assert len(names) == len(set(names))
