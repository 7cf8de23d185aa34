"""Concept sets: the same bytes for the same arguments, and [V] where the name would stand."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from dopsd.shapes import oracle, world
from dopsd.shapes.concepts import CONCEPTS, concept_prompts, prior_prompts, write_concept_set
from dopsd.shapes.grid import from_image


def _contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", sorted(CONCEPTS))
def test_a_set_is_what_it_says(tmp_path, name):
    table = write_concept_set(name, tmp_path / "a", count=8, seed=1)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == 8 and len({row["id"] for row in rows}) == 8
    images = []
    for row in rows:
        assert row["concept"] == name
        assert set(row["captions"]) == {"short", "medium", "detailed", "user_prompt"}
        for text in row["captions"].values():
            assert "[V]" in text and name not in text
        images.append(from_image(Image.open(table.parent / row["image"])))
    readings = oracle.read(torch.stack(images))
    assert all(getattr(seen, CONCEPTS[name]) == name and seen.valid for seen in readings)
    for seen, row in zip(readings, rows, strict=True):
        assert seen.fill in row["captions"]["detailed"]
        assert seen.ground in row["captions"]["detailed"]


def test_the_same_arguments_give_the_same_bytes_and_others_do_not(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_concept_set("ring", tmp_path / folder, count=5, seed=seed)
    contents = {name: _contents(tmp_path / name) for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_evaluation_prompts_are_deterministic_and_separate():
    prior, again = prior_prompts(20, 0), prior_prompts(20, 0)
    assert [p.text for p in prior] == [p.text for p in again]
    assert prior_prompts(20, 1)[0].scene != prior[0].scene
    assert not any("[V]" in prompt.text for prompt in prior)
    for name, attribute in CONCEPTS.items():
        for prompt in concept_prompts(name, 20, 0):
            assert "[V]" in prompt.text
            assert attribute in prompt.named and prompt.scene.named(attribute) == name
            assert set(prompt.named) <= set(world.ATTRIBUTES)
