"""What preparing says at its end, of pictures and captions made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dopsd.data.prepare.duplicates import near_copies
from tests.data.samples import picture, write_folder
from tests.data.sources.layouts import Seen, look


def write(folder: Path, images: list[Image.Image], captions: list[str], kind: str = "png") -> Path:
    folder.mkdir(exist_ok=True)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        image.save(folder / f"{number}.{kind}")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def of_captions(tmp_path: Path, *captions: str, **settings: str) -> Seen:
    images = [picture(number) for number in range(len(captions))]
    return look(write(tmp_path / "set", images, list(captions)), **settings)


def test_captions_that_lack_the_token(tmp_path: Path) -> None:
    assert of_captions(tmp_path, "a [V] cat", "a cat", "[V]").told("1 of 3 captions lack [V]")
    assert not of_captions(tmp_path, "a [V] cat", "one [V]", "[V]").told("[V]")
    seen = of_captions(tmp_path, "sks cat", "a sksy cat", "one, sks", token="sks")
    assert seen.told("1 of 3 captions lack sks")
    assert of_captions(tmp_path, "a", "b", "c").told("no caption holds '[V]'")


@pytest.mark.parametrize(
    "left", ["[trigger]", "{name}", "{{name}}", "<class>", "TODO", "lorem ipsum", "\ufffd"]
)
def test_placeholders_that_were_left(tmp_path: Path, left: str) -> None:
    seen = of_captions(tmp_path, f"a [V] {left} cat", "a [V] dog")
    assert seen.told("placeholders left in captions: ") and seen.told("(1)")
    assert not of_captions(tmp_path, "a [V] (very) cat", "a [V] dog, 3 < 4").told("placeholders")


def test_whole_captions_without_a_word(tmp_path: Path) -> None:
    assert of_captions(tmp_path, "None", "a [V] cat").told("placeholders left in captions: 'None'")


def test_pictures_that_are_enlarged_or_cropped(tmp_path: Path) -> None:
    images = [picture(0, 16, 16), picture(1, 128, 128), picture(2, 160, 32)]
    seen = look(write(tmp_path / "set", images, ["[V]"] * 3))
    assert seen.told("1 of 3 pictures are enlarged, most of all 0.png (16x16) 2 times a side")
    assert seen.told("1 of 3 pictures lose more than 10% to the crop, most of all 2.png")
    seen = look(tmp_path / "set", max_enlarge=1.5)
    assert seen.problems["0.png"].startswith(
        "too small: 16x16 pixels would become 32x32, 2 times a side, allowed: 1.5"
    )
    seen = look(tmp_path / "set", min_side=33)
    assert seen.problems["2.png"] == "too small: 160x32 pixels, allowed: 33 a side (data.min_side)"


def test_pictures_that_become_nearly_one_colour(tmp_path: Path) -> None:
    logo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(logo).ellipse((8, 8, 56, 56), fill=(255, 255, 255, 255))
    dark = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(dark).ellipse((8, 8, 56, 56), fill=(0, 0, 0, 255))
    images = [logo, dark, Image.new("RGB", (64, 64), "white"), picture(3)]
    seen = look(write(tmp_path / "set", images, ["[V]"] * 4))
    assert seen.told("2 of 4 pictures are transparent and lie over white; 1 of them become nearly")
    assert seen.told("1 of 4 pictures are nearly one colour, e.g. 2.png")


def shape(x: int) -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).rectangle((x, 60, x + 70, 130), fill=(200, 30, 30))
    return image


def test_copies_are_found_and_like_pictures_are_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", [shape(20), shape(60), picture(1), picture(2)], ["[V]"] * 4)
    assert not look(folder).told("repeat")
    shape(20).save(folder / "4.jpg", quality=70)
    shape(20).resize((180, 180), Image.Resampling.LANCZOS).save(folder / "5.png")
    for number in (4, 5):
        (folder / f"{number}.txt").write_text("[V] again")
    assert look(folder).told("2 of 6 pictures repeat another, e.g. 4.jpg is 0.png")


def test_copies_among_many_are_found_at_once() -> None:
    rng = np.random.default_rng(0)
    prints = [rng.integers(0, 256, 192, dtype=np.uint8) for _ in range(3000)]
    prints[2000] = np.clip(prints[17].astype(int) + rng.integers(-4, 5, 192), 0, 255).astype(
        np.uint8
    )
    prints[2500] = prints[17]
    assert near_copies([each.tobytes().hex() for each in prints]) == [[17, 2000, 2500]]


def test_concepts_of_unlike_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "set/rex", 5)
    write_folder(tmp_path / "set/aya", 2)
    assert look(tmp_path / "set").told("concepts hold from 2 samples ('aya') to 5 ('rex')")
    write_folder(tmp_path / "set/aya", 4)
    assert not look(tmp_path / "set").told("concepts hold")
