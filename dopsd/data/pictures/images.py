"""Image files to RGB pixels and back, with a reason for each file that cannot be used."""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError

from dopsd.data.pictures.colour import Profile, read_profile
from dopsd.data.pictures.file_kinds import NEEDS, file_kind
from dopsd.errors import message_line

MAX_PIXELS = 2**27
"""Pixels of a picture that is opened at all (134 million): a small file can claim to be huge."""
MAX_BYTES = 2**28
"""Bytes of an image file (256 MiB)."""
MAX_ASPECT = 8
"""The longer side by the shorter one: FLUX.2's own pipeline takes no narrower references, and of a
narrower target the crop to a bucket would leave less than a third."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow knows more, and some start other programs (EPS) or hold no picture."""
_PLUG_INS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
"""Formats that are read where a package teaches them to Pillow."""
_STRIP = 2**22
"""Pixels that are converted at a time: intermediate copies stay small beside the picture."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation; Pillow's own exif_transpose would turn a picture and keep the other."""


class BadImage(Exception):
    """An image that cannot be used; the message is the quarantine reason."""


@dataclass(frozen=True)
class Decoded:
    """A picture, and what was done to its pixels."""

    image: Image.Image
    """Upright 8-bit RGB."""
    transparent: bool = False
    """It was laid over white."""
    profile: Literal["none", "srgb", "converted", "unfit"] = "none"
    """Its colour profile: that of sRGB, converted to it, or one that does not fit its pixels."""


def decode_image(data: bytes) -> Image.Image:
    """As :func:`decode`, the picture alone."""
    return decode(data).image


def decode(data: bytes) -> Decoded:
    """An image file as upright 8-bit sRGB: EXIF orientation and colour profile applied,
    transparency over white.

    Takes up to about 10 bytes of memory per pixel beside ``data``. Raises BadImage with the reason.
    """
    if not data:
        raise BadImage("zero bytes")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns and raises at sizes of its choice; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats())
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(_too_large(f"{image.width}x{image.height} pixels"))
            # MPO is the JPEG of many phones: the photo, then a smaller one.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise BadImage(f"unsupported image: {image.format} of several frames or pages")
            image.load()
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        found = image.info.get("icc_profile")
        profile = read_profile(found) if found else None
        if profile is not None and not _fits(profile, image.mode):
            profile = None
        upright = _rgb(image, profile)
        transparent = _is_transparent(image)
        image.close()
        kind: Literal["none", "srgb", "converted", "unfit"] = "none"
        if found:
            kind = "unfit" if profile is None else "converted" if profile.transform else "srgb"
        upright = upright if turn is None else upright.transpose(turn)
        return Decoded(upright, transparent, kind)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_large("more pixels than Pillow opens")) from None
    except UnidentifiedImageError:  # its own message holds a memory address
        raise BadImage(_unknown(data)) from None
    except Exception as error:  # Pillow's decoders and EXIF parser raise many kinds
        raise BadImage(f"broken image: {message_line(error)}") from None


def check_shape(width: int, height: int, multiple: int) -> None:
    """Raises BadImage for a picture too small or too narrow to be trained on or shown."""
    if min(width, height) < multiple:
        raise BadImage(f"too small: {width}x{height} pixels, allowed: at least {multiple} a side")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"too narrow: {width}x{height} pixels, allowed: {MAX_ASPECT} to 1 at most")


def encode_png(image: Image.Image) -> bytes:
    """RGB or gray image as PNG bytes; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    # zlib's usual level, 6, takes a quarter longer for the same size of photographs.
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG of a shard to uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def stand_in(width: int, height: int) -> np.ndarray:
    """What is shown in place of the target of a sample that has none: uint8 [H, W, 3]."""
    image = Image.new("RGB", (width, height), (128, 128, 128))
    ImageDraw.Draw(image).text((width / 2, height / 2), "no picture", anchor="mm")
    return np.asarray(image)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    found = [name for name in FORMATS if name in Image.OPEN]  # an older Pillow has no AVIF
    for name, module in _PLUG_INS.items():
        if importlib.util.find_spec(module) is None:
            continue
        plug_in = importlib.import_module(module)  # of JPEG XL that alone is enough
        if name == "HEIF":
            plug_in.register_heif_opener()
        if name in Image.OPEN:
            found.append(name)
    return tuple(found)


def _unknown(data: bytes) -> str:
    """The reason of a file that is no picture of a format that is read."""
    kind = file_kind(data)
    formats = ", ".join(_formats())
    if kind is None:
        return f"broken image: not a format of {formats}"
    if kind in NEEDS:
        return f"unsupported image: {kind}, allowed: {formats}; {NEEDS[kind]} reads it"
    return f"broken image: not a format of {formats} but {kind}"


def _fits(profile: Profile, mode: str) -> bool:
    """A profile of RGB fits gray too, which some programs write; others fit their own pixels."""
    gray = mode in ("L", "LA", "La", "1") or mode.startswith("I")
    if profile.space == "CMYK":
        return mode == "CMYK"
    return gray if profile.space == "L" else mode != "CMYK"


def _is_transparent(image: Image.Image) -> bool:
    """Whether some pixel is not opaque."""
    if not image.has_transparency_data:
        return False
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.getextrema()[0] != 255


def _rgb(image: Image.Image, profile: Profile | None) -> Image.Image:
    # A new image: no EXIF, no ICC profile, no text of the original travels on.
    whole = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_strip(image.crop(box), profile), box)
    return whole


def _strip(image: Image.Image, profile: Profile | None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return _as_srgb(image, profile)
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unsupported image: gray values outside 16 bits")
        return _as_srgb(Image.fromarray(((values + 128) // 257).astype(np.uint8)), profile)
    if image.mode == "F":
        raise BadImage("unsupported image: floating-point pixels")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if transparent or "transparency" in image.info:
        layer = image.convert("RGBA")
        if profile is not None:
            alpha = layer.getchannel("A")
            layer = _as_srgb(layer.convert("RGB").convert(profile.space), profile)
            layer.putalpha(alpha)
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return _as_srgb(image, profile)


def _as_srgb(image: Image.Image, profile: Profile | None) -> Image.Image:
    if profile is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return profile.rgb(image if image.mode == profile.space else image.convert(profile.space))


def _too_large(what: str) -> str:
    return f"too large: {what}, allowed: {MAX_PIXELS} pixels"
