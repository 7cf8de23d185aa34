"""Bad and odd pictures and captions, each with what must become of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dopsd.data.pictures.images import MAX_PIXELS
from dopsd.data.sources.fields import MAX_CAPTION

RED, WHITE = (255, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Expected:
    """What becomes of one input: quarantined for a ``reason`` (its beginning), or accepted."""

    reason: str = ""
    caption: str | None = None
    """The caption that it trains with; None: whatever."""
    corner: tuple[int, int, int] | None = None
    """The colour of its upper left, upright and over white."""
    samples: int = 1


@dataclass(frozen=True)
class Picture:
    name: str
    data: bytes
    expected: Expected
    suffix: str = ".png"


def pictures(rng: np.random.Generator, rounds: int) -> Iterator[Picture]:
    """Image files of every kind, ``rounds`` of each with other pixels or spoilt bytes."""
    for number in range(rounds):
        for name, make in KINDS.items():
            data, expected = make(rng)
            suffix = SUFFIXES[(number + len(name)) % len(SUFFIXES)]  # nearly always a wrong one
            yield Picture(f"{name}-{number:02}", data, expected, suffix)


SUFFIXES = (".png", ".jpg", ".WEBP", ".jpeg", ".gif", ".tiff", ".bmp")


def noise(rng: np.random.Generator, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked(width: int = 40, height: int = 32) -> Image.Image:
    """White, its upper left quarter red."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A few bytes that claim ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def resized(data: bytes, at: int, form: str, *sides: int) -> bytes:
    """A file whose header claims other sides."""
    return data[:at] + struct.pack(form, *sides) + data[at + struct.calcsize(form) :]


# -- pictures: name -> (bytes, what becomes of them) ---------------------------------------------

Made = tuple[bytes, Expected]
FINE = Expected()
MARKED = Expected(corner=RED)


def _cut(kind: str) -> Callable[[np.random.Generator], Made]:
    def make(rng: np.random.Generator) -> Made:
        data = saved(noise(rng, 64, 64), kind)
        return data[: int(rng.integers(20, len(data) * 3 // 4))], Expected("broken image")

    return make


def _turned(orientation: int) -> Callable[[np.random.Generator], Made]:
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }

    def make(rng: np.random.Generator) -> Made:
        turn = turns[orientation]
        stored = marked() if turn is None else marked().transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        return saved(stored, "PNG", exif=exif), MARKED

    return make


def _animated(kind: str) -> Callable[[np.random.Generator], Made]:
    def make(rng: np.random.Generator) -> Made:
        frames = [noise(rng) for _ in range(3)]
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        return data, Expected("unsupported image")

    return make


def _plain(kind: str, mode: str = "RGB", **options: Any) -> Callable[[np.random.Generator], Made]:
    def make(rng: np.random.Generator) -> Made:
        return saved(marked().convert(mode), kind, **options), FINE if kind == "JPEG" else MARKED

    return make


def _palette(rng: np.random.Generator) -> Made:
    image = Image.new("P", (40, 32), 0)
    image.putpalette([10, 20, 30, *RED])
    image.paste(1, (0, 0, 20, 16))
    return saved(image, "PNG", transparency=0), MARKED


def _transparent(rng: np.random.Generator) -> Made:
    return saved(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), "PNG"), Expected(corner=WHITE)


def _gray16(rng: np.random.Generator) -> Made:
    values = np.full((32, 32), 257 * 100, dtype=np.uint16)
    return saved(Image.fromarray(values), "PNG"), Expected(corner=(100, 100, 100))


def _flipped(rng: np.random.Generator) -> Made:
    data = bytearray(saved(noise(rng), "PNG"))
    data[int(rng.integers(60, len(data) - 30))] ^= 0x55  # the checksum of its chunk finds it
    return bytes(data), Expected("broken image")


def _sized(width: int, height: int, reason: str) -> Callable[[np.random.Generator], Made]:
    return lambda rng: (saved(noise(rng, width, height), "PNG"), Expected(reason))


def _always(data: bytes, reason: str) -> Callable[[np.random.Generator], Made]:
    return lambda rng: (data, Expected(reason))


_SIDE = int(MAX_PIXELS**0.5) + 1000
KINDS: dict[str, Callable[[np.random.Generator], Made]] = {
    **{f"cut-{kind}": _cut(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")},
    **{f"turned-{orientation}": _turned(orientation) for orientation in range(1, 9)},
    **{f"animated-{kind}": _animated(kind) for kind in ("GIF", "WEBP", "PNG", "TIFF")},
    "plain-png": _plain("PNG"),
    "plain-jpeg": _plain("JPEG"),
    "plain-webp": _plain("WEBP", lossless=True),
    "plain-bmp": _plain("BMP"),
    "plain-gif": _plain("GIF"),
    "phone": lambda rng: (
        saved(marked(), "MPO", save_all=True, append_images=[marked(20, 16)]),
        FINE,
    ),
    "cmyk-jpeg": _plain("JPEG", "CMYK"),
    "cmyk-tiff": _plain("TIFF", "CMYK"),
    "palette": _palette,
    "transparent": _transparent,
    "gray16": _gray16,
    "float": lambda rng: (saved(Image.new("F", (32, 32)), "TIFF"), Expected("unsupported image")),
    "flipped": _flipped,
    "pixel": _sized(1, 1, "too small: 1x1"),
    "line": _sized(500, 2, "too small: 500x2"),
    "narrow": _sized(400, 20, "too narrow: 400x20"),
    "tall": _sized(20, 400, "too narrow: 20x400"),
    "eight": _sized(160, 20, ""),
    "nil": _always(b"", "zero bytes"),
    "text": _always(b"this is no picture", "broken image: not a format"),
    "html": _always(b"<html>404</html>", "broken image: not a format"),
    "eps": _always(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "broken"),
    "zeros": _always(bytes(5000), "broken image: not a format"),
    "bomb-png": _always(bomb_png(_SIDE, _SIDE), "too large"),
    "bomb-wide": _always(bomb_png(2**31 - 1, 1000), "too large"),
    "bomb-endless": _always(bomb_png(2**31 - 1, 2**31 - 1), "too large"),
    "bomb-gif": _always(resized(saved(marked(), "GIF"), 6, "<HH", 65535, 65535), "too large"),
    "bomb-bmp": _always(resized(saved(marked(), "BMP"), 18, "<ii", 30000, 30000), "too large"),
    "bomb-hollow": _always(bomb_png(8000, 8000), "broken image"),
}

# -- captions: name -> (caption, what becomes of it) ---------------------------------------------

TEXTS: dict[str, tuple[str, Expected]] = {
    "arabic": ("قطة على أريكة", Expected(caption="قطة على أريكة")),
    "hebrew-override": ("‮חתול [V]‬", Expected(caption="‮חתול [V]‬")),
    "emoji": ("👩‍👩‍👧 🏳️‍🌈 [V] 🐈‍⬛", Expected(caption="👩‍👩‍👧 🏳️‍🌈 [V] 🐈‍⬛")),
    "combining": ("Z͑ͫ̓a̴l̵g̶o̷", Expected()),
    "markup": ("<script>alert(1)</script>", Expected(caption="<script>alert(1)</script>")),
    "lines": (" one\n\ttwo\r\n", Expected(caption="one two")),
    "longest": ("x" * MAX_CAPTION, Expected(caption="x" * MAX_CAPTION)),
    "long": ("x" * (MAX_CAPTION + 1), Expected("caption too long")),
    "megabyte": ("y" * 2**20, Expected("caption too long")),
    "nul": ("a\0b", Expected("caption holds U+0000")),
    "escape": ("\x1b[31mred", Expected("caption holds U+001B")),
    "delete": ("a\x7fb", Expected("caption holds U+007F")),
    "blank": (" \n\t ", Expected("empty caption")),
    "turn": ("a <|im_end|> b", Expected("caption holds <|im_end|>, a control token")),
}
