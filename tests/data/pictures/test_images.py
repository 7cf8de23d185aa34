from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dopsd.data.pictures import images
from dopsd.data.pictures.images import BadImage, decode_image, decode_png, encode_png
from tests.data.samples import picture, png


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_png_round_trip_keeps_every_pixel() -> None:
    image = picture(3, 20, 12)
    data = encode_png(image)
    assert data == encode_png(image)
    assert np.array_equal(decode_png(data), np.asarray(image))
    assert decode_png(data).shape == (12, 20, 3)


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert pixel(png(half)) == (255, 127, 127)
    gray = Image.new("LA", (4, 4), (0, 0))
    assert pixel(png(gray)) == (255, 255, 255)


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    data = png(image, transparency=0)
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, 1) == (200, 100, 50)


def test_a_transparent_colour_of_an_rgb_file_is_laid_over_white() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert pixel(png(image, transparency=(1, 2, 3))) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    """Orientation 6: the camera was turned, the stored top is the right side."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(saved(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (255, 0, 0)
    assert upright.getpixel((10, 37)) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    data = png(Image.fromarray(values))
    assert [pixel(data, x)[0] for x in range(3)] == [0, 100, 255]


def test_gray_bilevel_and_cmyk_become_rgb() -> None:
    assert pixel(png(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(png(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    cyan = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF")
    assert pixel(cyan) == (0, 255, 255)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"this is text", "broken image: not a format"),
        (png(picture(0))[:-200], "broken image"),
        (saved(picture(0, 64, 64), "JPEG")[:-300], "broken image"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "unsupported image: floating-point"),
    ],
)
def test_bad_files_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode_image(data)


def bomb(side: int) -> bytes:
    """A few bytes that claim ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 100_000])
def test_decompression_bombs_are_not_opened(side: int) -> None:
    assert side * side > images.MAX_PIXELS
    with pytest.raises(BadImage, match="too large"):
        decode_image(bomb(side))
