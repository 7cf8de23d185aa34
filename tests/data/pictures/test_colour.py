"""Colour profiles, kinds of files, and formats beyond the usual."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from dopsd.data.pictures.images import BadImage, decode
from tests.data.samples import picture, png


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exchanged() -> bytes:
    """sRGB with the primaries of red and green exchanged: what was red is green."""
    profile = bytearray(srgb())
    red, green = profile.index(b"rXYZ", 128), profile.index(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_profiles_are_converted(mode: str, kind: str) -> None:
    if (mode, kind) == ("P", "WEBP"):
        pytest.skip("WebP has no palettes")
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    red.save(buffer, kind, icc_profile=exchanged(), **options)
    found = decode(buffer.getvalue())
    assert found.profile == "converted"
    assert found.image.getpixel((5, 5)) == (0, 255, 0)


def test_srgb_stays_to_the_bit() -> None:
    image = picture(3)
    found = decode(png(image, icc_profile=srgb()))
    assert found.profile == "srgb" and np.array_equal(np.asarray(found.image), np.asarray(image))


@pytest.mark.parametrize("profile", [b"nonsense", srgb()[:200]], ids=["nonsense", "cut"])
def test_a_broken_profile_is_left_out(profile: bytes) -> None:
    image = picture(3)
    found = decode(png(image, icc_profile=profile))
    assert found.profile == "unfit" and np.array_equal(np.asarray(found.image), np.asarray(image))


def test_gray_with_a_profile_of_rgb_is_converted() -> None:
    found = decode(png(Image.new("L", (16, 16), 77), icc_profile=exchanged()))
    assert found.profile == "converted"
    red, green, blue = found.image.getpixel((1, 1))  # type: ignore[misc]
    assert max(abs(red - 77), abs(green - 77), abs(blue - 77)) <= 2


def test_a_profile_of_rgb_does_not_fit_cmyk() -> None:
    buffer = io.BytesIO()
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    cyan.save(buffer, "TIFF", icc_profile=exchanged())
    found = decode(buffer.getvalue())
    assert found.profile == "unfit" and found.image.getpixel((1, 1)) == (0, 255, 255)


def test_transparency_is_told() -> None:
    assert decode(png(Image.new("RGBA", (4, 4), (1, 2, 3, 200)))).transparent
    assert not decode(png(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))).transparent
    assert not decode(png(Image.new("RGB", (4, 4)))).transparent


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / "a.avif", quality=100)
    pixel = decode((tmp_path / "a.avif").read_bytes()).image.getpixel((9, 9))
    assert max(abs(a - b) for a, b in zip(pixel, (200, 30, 60), strict=True)) <= 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, allowed: PNG.*pillow-heif reads it"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a" + bytes(30), "JPEG XL, allowed: PNG.*pillow-jxl-plugin reads it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "JPEG XL"),
        (b"8BPS" + bytes(30), "but a file of Photoshop"),
        (b"<!DOCTYPE html><html>", "but a web page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "but an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "but a pointer of Git LFS"),
        (b"\0\0\0\x18ftypisom" + bytes(30), "but a film"),
    ],
)
def test_files_are_named_as_what_they_are(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data)
