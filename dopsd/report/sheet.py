"""Contact sheets: rows of pictures under column titles, one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from dopsd.shown import line as shown_line

_MARGIN = 8
_CELL = 192
"""Smallest shown side of a picture in pixels; pixel art is enlarged without smoothing."""
_MAX_CELL = 512
_STRIP_CELL = 320
"""Largest side of a picture in a strip, in pixels."""


def contact_sheet(
    titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]
) -> Image.Image:
    """A grid with ``titles`` above the columns and each row's caption below it.

    ``rows``: R rows of as many RGB pictures as there are titles; the pictures of a row are of
    one size. Small ones are enlarged by a whole factor, large ones reduced.
    """
    font = ImageFont.load_default(size=14)
    line = 18
    shown = [[_fit(picture) for picture in row] for row in rows]
    cell = max(picture.width for row in shown for picture in row)
    width = len(titles) * (cell + _MARGIN) + _MARGIN
    letters = max(20, (width - 2 * _MARGIN) // 7)
    texts = [textwrap.wrap(shown_line(caption), letters)[:3] or [""] for caption in captions]
    heights = [
        max(picture.height for picture in row) + len(text) * line + 2 * _MARGIN
        for row, text in zip(shown, texts)
    ]
    sheet = Image.new("RGB", (width, line + 2 * _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        at = (_MARGIN + column * (cell + _MARGIN), _MARGIN)
        draw.text(at, shown_line(title), "black", font)
    top = line + 2 * _MARGIN
    for row, text, height in zip(shown, texts, heights):
        for column, picture in enumerate(row):
            sheet.paste(picture, (_MARGIN + column * (cell + _MARGIN), top))
        below = top + max(picture.height for picture in row) + 2
        for number, words in enumerate(text):
            draw.text((_MARGIN, below + number * line), words, "dimgray", font)
        top += height
    return sheet


def strip(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of equally many pictures of one size, edge to edge; large ones are reduced.

    ``cut`` takes it apart again.
    """
    side = max(rows[0][0].size)
    scale = min(1.0, _STRIP_CELL / side)
    width, height = (max(1, round(length * scale)) for length in rows[0][0].size)
    sheet = Image.new("RGB", (len(rows[0]) * width, len(rows) * height))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            small = picture if scale == 1.0 else picture.resize((width, height))
            sheet.paste(small, (x * width, y * height))
    return sheet


def cut(sheet: Image.Image, columns: int, rows: int) -> list[list[Image.Image]]:
    """The pictures of a strip."""
    width, height = sheet.width // columns, sheet.height // rows
    return [
        [
            sheet.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def _fit(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    if side < _CELL:
        factor = -(-_CELL // side)
        return picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    if side > _MAX_CELL:
        scale = _MAX_CELL / side
        return picture.resize((round(picture.width * scale), round(picture.height * scale)))
    return picture
