"""The shipped base: small, intact, loaded by stock classes, and as good as its card says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import ZImagePipeline
from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration

from dopsd import shapes
from dopsd.errors import ModelError
from dopsd.experiments.shapes_base import nets, save
from dopsd.experiments.shapes_card import card as cards
from dopsd.intervals import wilson


@pytest.fixture(scope="module")
def folder():
    return shapes.weights_path()


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = ZImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_folder_is_small_and_its_hash_is_right(folder):
    assert save.folder_size(folder) <= save.LIMIT
    assert (folder / save.HASH_FILE).read_text().strip() == save.weights_hash(folder)
    assert json.loads((folder / "card.json").read_text())["sha256"] == save.weights_hash(folder)
    for path in folder.rglob("*"):
        assert not path.is_file() or path.stat().st_size < 4_000_000, path


def card_values(folder, kind, picture):
    """What the card says of the four steps of `turbo`, by name."""
    rows = json.loads((folder / "card.json").read_text())["rows"]
    asked = ("turbo", kind, 4, picture)
    return next(
        row["values"]
        for row in rows
        if (row["model"], row["prompts"], row["steps"], row["picture"]) == asked
    )


def test_a_missing_base_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelError, match="dopsd shapes build-base"):
        shapes.weights_path()


def test_the_vlm_speaks_the_text_encoders_language(folder, pipeline):
    vlm = Qwen3VLForConditionalGeneration.from_pretrained(folder / "vlm", dtype=torch.float32)
    language = vlm.model.language_model.state_dict()
    encoder = pipeline.text_encoder.state_dict()
    assert language.keys() == encoder.keys()
    assert all(torch.equal(language[name], encoder[name]) for name in encoder)


def test_the_image_processor_shows_pixels_without_blur(folder):
    processor = AutoImageProcessor.from_pretrained(folder / "vlm")
    assert processor.resample == 0
    assert processor.patch_size == nets.PATCH and processor.merge_size == nets.MERGE
    picture = cards.full_prompts(1, 0)[0].scene
    from dopsd.shapes.grid import to_image
    from dopsd.shapes.world import render

    shown = processor(images=[to_image(render([picture])[0])], return_tensors="pt")
    assert shown["image_grid_thw"].tolist() == [[1, 8, 8]]


@pytest.mark.parametrize("kind", ["full", "partial"])
def test_the_stock_pipeline_draws_what_the_card_says(folder, pipeline, kind):
    count = 32
    prompts = cards.prompts_of(kind, count, seed=9)
    images = pipeline(
        prompt=[prompt.text for prompt in prompts],
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(9),
        output_type="pt",
    ).images.float()
    row = card_values(folder, kind, False)
    values = cards.evaluate(prompts, images, kind)
    for name in ("named", "all_named", "valid", "ok"):
        hits = round(values[name].value * count)
        low, high = wilson(hits, count, z=3.0)
        known = row[name]
        assert low <= known["high"] and known["low"] <= high, (name, values[name], known)


@pytest.mark.parametrize("kind", ["bars", "ring"])
def test_the_picture_context_works_as_the_card_says(folder, kind):
    count = 24
    model = cards.load(folder)
    prompts = cards.prompts_of(kind, count, seed=9)
    known = card_values(folder, kind, True)["concept"]
    images = cards.generate(
        model, model.transformers["turbo"], prompts, picture=True, steps=4, guidance=0.0, seed=9
    )
    hits = round(cards.evaluate(prompts, images, kind)["concept"].value * count)
    low, high = wilson(hits, count, z=3.0)
    assert low <= known["high"] and known["low"] <= high


def test_a_changed_weight_changes_the_hash(folder, tmp_path):
    copy = tmp_path / "w"
    shutil.copytree(folder, copy)
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert save.weights_hash(copy) != save.weights_hash(folder)
