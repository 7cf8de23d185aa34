"""Does the teacher zoom? Its picture against the target after the best translation and scale.

A teacher that draws what it sees too large teaches just that: published runs zoom in after a few
steps because their teacher does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from dopsd.intervals import nested_bootstrap

Outcome = Literal["zooms_in", "zooms_out", "kept", "unclear", "untold"]
_SIDE = 64
"""Shorter side, in pixels, at which pictures are compared; smaller ones as they are."""
_LEAST_SIDE = 16
_IN, _OUT = 2.0, 1.5
"""The largest zooms that are looked for. Of a target that is shrunk further so little is left that
it lies somewhere in any plain picture."""
_FINE, _COARSE = 0.7, 4.0
"""Gaussian blurs in pixels whose difference is compared: edges and parts, neither noise nor the
layout of light, in which unlike pictures agree."""
_MATCH = 0.6
"""Correlation from which on a picture is taken to show the target."""
_EMPTY = 0.01
"""Energy of edges, as a share of the picture's mean, below which a part of it counts as having that
much."""
_ZOOM = 1.05
"""The least zoom that is called one."""
_KEPT = 1.1
"""Within which, in and out, a framing is called kept."""


@dataclass(frozen=True)
class Framing:
    """How a picture lies on its target.

    ``zoom``: how many times larger it shows what the target shows. ``match``: normalised
    cross-correlation of the two at that zoom and the best translation, -1 to 1; ``unscaled``: at
    zoom 1 and its own best translation.
    """

    zoom: float
    match: float
    unscaled: float

    @property
    def told(self) -> bool:
        """Whether the picture shows the target, so that its zoom means something."""
        return self.match >= _MATCH


@dataclass(frozen=True)
class FramingVerdict:
    """The zoom of a teacher's pictures: geometric mean with its 95% bootstrap interval, over those
    that show their targets; None where none does."""

    outcome: Outcome
    zoom: float | None
    low: float | None
    high: float | None
    told: int
    """Samples of which a picture shows the target."""
    samples: int

    @property
    def zooms(self) -> bool:
        """Whether it was shown to zoom."""
        return self.outcome in ("zooms_in", "zooms_out")

    def sentence(self) -> str:
        """The verdict in one line, with its numbers."""
        of = f"{self.told} of {self.samples} samples"
        if self.outcome == "untold":
            return f"not told, too few pictures of the teacher show the target's own parts ({of})"
        numbers = f"{self.zoom:.2f} [{self.low:.2f}, {self.high:.2f}]"
        if self.outcome == "kept":
            return f"the teacher keeps that of the target: zoom {numbers}, by {of}"
        if self.outcome == "unclear":
            return f"unclear whether the teacher zooms: {numbers}, by {of}; look at the sheet"
        way = "IN" if self.outcome == "zooms_in" else "OUT"
        return (
            f"the teacher zooms {way}: it draws the target {numbers} times as large ({of}), which "
            "the student will learn too"
        )


def framing(target: Image.Image, picture: Image.Image) -> Framing | None:
    """How ``picture`` lies on ``target``, RGB of one size; None for pictures too small to tell."""
    short = min(_SIDE, *target.size)
    if short < _LEAST_SIDE:
        return None
    shown = _parts(_at(picture, short))
    found = []
    for side in range(math.ceil(short / _OUT), math.floor(short * _IN) + 1):
        scaled = _parts(_at(target, side))
        window, whole = (shown, scaled) if side >= short else (scaled, shown)
        found.append((_correlation(window, whole), side / short))
    match, zoom = max(found)
    return Framing(zoom, match, next(value for value, scale in found if scale == 1))


def judge_framing(samples: Sequence[Sequence[Framing | None]]) -> FramingVerdict:
    """The verdict on a teacher's pictures, of each sample one a noise.

    `zooms_in` and `zooms_out` when the whole interval lies beyond 5%, `kept` when it lies within
    10%; `untold` when fewer than half of the samples have a picture that shows the target.
    """
    zooms = [
        [(math.log(found.zoom),) for found in pictures if found is not None and found.told]
        for pictures in samples
    ]
    told = [rows for rows in zooms if rows]
    if 2 * len(told) < len(samples) or not told:
        return FramingVerdict("untold", None, None, None, len(told), len(samples))
    low, high = nested_bootstrap(told, lambda means: np.exp(means[:, 0]))
    zoom = math.exp(np.mean([row for rows in told for row in rows]))
    outcome: Outcome = "unclear"
    if low > _ZOOM or high < 1 / _ZOOM:
        outcome = "zooms_in" if low > _ZOOM else "zooms_out"
    elif low > 1 / _KEPT and high < _KEPT:
        outcome = "kept"
    return FramingVerdict(outcome, zoom, low, high, len(told), len(samples))


def _at(image: Image.Image, short: int) -> Image.Image:
    """``image`` with a shorter side of ``short`` pixels."""
    scale = short / min(image.size)
    width, height = (max(short, round(length * scale)) for length in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _parts(image: Image.Image) -> np.ndarray:
    """Edges and parts of a picture, [3, H, W] float64: a band of its frequencies."""
    pixels = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255
    return _blurred(pixels, _FINE) - _blurred(pixels, _COARSE)


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; the border is reflected."""
    reach = round(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = np.pad(pixels, pad, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis)
        pixels = windows @ kernel
    return pixels


def _correlation(window: np.ndarray, whole: np.ndarray) -> float:
    """The largest normalised cross-correlation of ``window`` [3, h, w] with a part of its size of
    ``whole`` [3, H, W], half of which may lie beyond its border; neither holds frequencies as low
    as a mean. Beyond the border is nothing: what the window shows there counts against it."""
    height, width = window.shape[1:]
    margins = [(length // 2, length // 2) for length in (height, width)]
    whole = np.pad(whole, ((0, 0), *margins))
    rows, columns = (size - own + 1 for size, own in zip(whole.shape[1:], (height, width)))
    spectrum = np.fft.rfft2(whole) * np.conj(np.fft.rfft2(window, s=whole.shape[1:]))
    common = np.fft.irfft2(spectrum.sum(0), s=whole.shape[1:])[:rows, :columns]
    table = np.pad((whole**2).sum(0), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    energy = (table[height:, width:] - table[height:, :columns] - table[:rows, width:]) + table[
        :rows, :columns
    ]
    # A part with next to no edges agrees with whatever it is held against.
    energy = np.maximum(energy, _EMPTY * height * width * (whole**2).sum(0).mean())
    return float((common / np.sqrt(energy * (window**2).sum() + 1e-12)).max())
