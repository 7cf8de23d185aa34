"""References at inference: the stock pipeline sees what the student was trained to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dopsd.cli.main import main
from dopsd.contexts import EncoderFactory
from dopsd.data.pictures.references import sized
from dopsd.data.sample import Sample
from dopsd.evaluation.generate import generate
from dopsd.models import Flux2Klein
from tests.helpers.tiny import random_image
from tests.helpers.tiny_flux2 import make_flux2_config

PROMPT = "make it red"
PICTURES = [Image.fromarray(random_image(70, 101, 0)), Image.fromarray(random_image(90, 66, 1))]


def test_the_stock_pipeline_sees_the_students_references(tiny_flux2: Path) -> None:
    config = make_flux2_config(tiny_flux2, context={"name": "edit_reference"})
    encoder: Any = EncoderFactory(config, "cpu")()
    references = tuple(sized(picture, 1024**2, 4) for picture in PICTURES)
    context = encoder.encode_student([Sample("a", PROMPT, None, references)])
    family = Flux2Klein(str(tiny_flux2))
    pipeline = family.load_pipeline(torch.float32, "cpu")
    noise = torch.randn(1, *family.latent_shape(32, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = family.generate(pipeline, context, noise, 2, 32, 48)[0]
    options = {"height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 1.0}
    stock = pipeline(prompt=PROMPT, image=list(PICTURES), latents=noise, **options).images[0]
    blind = pipeline(prompt=PROMPT, latents=noise, **options).images[0]
    assert difference(ours, stock) <= 2
    assert difference(ours, blind) > 2


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def test_generate_shows_its_references_with_every_prompt(tiny_flux2: Path) -> None:
    family = Flux2Klein(str(tiny_flux2))

    def draw(*references: Image.Image) -> list[Image.Image]:
        options: tuple[Any, ...] = (None, 2, 32, 48, 0, "float32", "cpu", references)
        return list(generate(family, [PROMPT, PROMPT], *options))

    plain, first, both = draw(), draw(PICTURES[0]), draw(*PICTURES)
    for number in range(2):
        assert difference(plain[number], first[number]) > 2
        assert difference(first[number], both[number]) > 2


@pytest.mark.parametrize(
    ("size", "options", "line"),
    [
        ((80, 80), [], "--reference: given with family z_image, allowed: none"),
        ((80, 40), ["--family", "flux2_klein"], "too small: 80x40 pixels, allowed: at least 64"),
        (None, ["--family", "flux2_klein"], "none.png: no such file"),
    ],
)
def test_a_reference_that_cannot_be_shown_is_one_line(
    size: tuple[int, int] | None,
    options: list[str],
    line: str,
    tmp_path: Path,
    tiny_base: Path,
    tiny_flux2: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "none.png"
    if size:
        Image.new("RGB", size).save(path)
    base = tiny_flux2 if "flux2_klein" in options else tiny_base
    arguments = ["generate", "x", "--base", str(base), "--reference", str(path)]
    assert main([*arguments, *options]) == 1
    message = capsys.readouterr().err
    assert line in message and message.count("\n") == 1
