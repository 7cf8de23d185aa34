"""Pictures of the run page: drawings over training, and the trajectories behind them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from dopsd.report.records import HistoryRecord, StateRecord
from dopsd.report.sheet import cut
from dopsd.run_folder.preview_files import prompt_path, strip_path, target_path

_PIXEL_ART = 96
"""Pictures up to this side are shown as they are, enlarged without smoothing."""
_THUMBNAIL = 256
"""Largest side of a picture in the page; the run folder holds larger ones."""


def inline(
    picture: Image.Image, alt: str, limit: int = _THUMBNAIL, group: str = "", file: str = ""
) -> Markup:
    """``<img>`` with the picture inside: PNG when small, else a JPEG of at most ``limit``.

    ``group``: of the pictures that are looked through together, from the first to the last;
    ``file``: where in the run folder the whole picture lies.
    """
    buffer = io.BytesIO()
    small = max(picture.size) <= _PIXEL_ART
    if small:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture = picture.convert("RGB")
        picture.thumbnail((limit, limit))
        picture.save(buffer, format="JPEG", quality=85)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = picture.size
    return Markup(
        '<img class="{}" src="data:image/{};base64,{}" alt="{}" width="{}" height="{}"{}{}>'
    ).format(
        "pixel" if small else "",
        kind,
        data,
        alt,
        width,
        height,
        Markup(' data-group="{}"').format(group) if group else "",
        Markup(' data-file="{}"').format(file) if file else "",
    )


@dataclass
class Drawing:
    """A sample under one version: K + 1 pictures of each role, the last its own drawing."""

    version: int
    states: list[StateRecord]
    student: list[Image.Image]
    teacher: list[Image.Image]

    @property
    def columns(self) -> list[str]:
        """What each of the K + 1 pictures is of."""
        return [f"σ {state.sigma:.3g}" for state in self.states] + ["drawn"]


@dataclass
class DrawnSample:
    """One sample: its prompt, target and drawings by version."""

    prompt: str
    target: Image.Image
    drawings: list[Drawing]


def read_drawn(history: HistoryRecord, picture: Callable[[str], Image.Image]) -> list[DrawnSample]:
    """Every sample of a run's history; ``picture`` reads one of the run folder by its path."""
    samples = []
    for index, sample in enumerate(history.samples):
        drawings = []
        for row in history.rows:
            if row.sample == index:
                whole = picture(strip_path(row.version, index))
                student, teacher = cut(whole, len(row.states) + 1, 2)
                drawings.append(Drawing(row.version, row.states, student, teacher))
        samples.append(DrawnSample(sample.prompt, picture(target_path(index)), drawings))
    return samples


@dataclass
class PromptDrawing:
    """An own prompt under one version of the student."""

    version: int
    file: str
    picture: Image.Image


@dataclass
class DrawnPrompt:
    """An own prompt, and its drawings by version."""

    prompt: str
    drawings: list[PromptDrawing]


def read_prompts(
    history: HistoryRecord, picture: Callable[[str], Image.Image]
) -> list[DrawnPrompt]:
    """Every own prompt of a run's history, as :func:`read_drawn` its samples."""
    found = []
    for index, prompt in enumerate(history.prompts):
        versions = [drawn.version for drawn in history.pictures if drawn.prompt == index]
        files = {version: prompt_path(version, index) for version in versions}
        drawings = [PromptDrawing(v, file, picture(file)) for v, file in files.items()]
        found.append(DrawnPrompt(prompt.prompt, drawings))
    return found
