"""Pictures of the run page: drawings over training, and the trajectories behind them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from dopsd.report.sheet import cut
from dopsd.run_folder.preview_files import strip_path, target_path

_PIXEL_ART = 96
"""Pictures up to this side are shown as they are, enlarged without smoothing."""

_THUMBNAIL = 256
"""Largest side of a picture in the page; the run folder holds larger ones."""


ReadFn = Callable[[str], bytes]
"""A file of the run folder, by its path there."""


def inline(picture: Image.Image, alt: str, limit: int = _THUMBNAIL) -> str:
    """``<img>`` with the picture inside: PNG when small, else a JPEG of at most ``limit``."""
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
    pixel = ' class="pixel"' if small else ""
    width, height = picture.size
    return (
        f'<img{pixel} src="data:image/{kind};base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )


@dataclass
class Drawing:
    """A sample under one version: K + 1 pictures of each role, the last its own drawing."""

    version: int
    states: list[dict[str, float]]
    student: list[Image.Image]
    teacher: list[Image.Image]


@dataclass
class Drawn:
    """One sample: its prompt, target and drawings by version."""

    prompt: str
    target: Image.Image
    drawings: list[Drawing]


def read_drawn(history: dict[str, Any], read: ReadFn) -> list[Drawn]:
    """Every sample of a run's history."""

    def picture(name: str) -> Image.Image:
        return Image.open(io.BytesIO(read(name))).convert("RGB")

    samples = []
    for index, sample in enumerate(history["samples"]):
        drawings = []
        for row in history["rows"]:
            if row["sample"] == index:
                version = int(row["version"])
                whole = picture(strip_path(version, index))
                student, teacher = cut(whole, len(row["states"]) + 1, 2)
                drawings.append(Drawing(version, row["states"], student, teacher))
        samples.append(Drawn(sample["prompt"], picture(target_path(index)), drawings))
    return samples


def over_training(samples: list[Drawn]) -> str:
    """For each sample the target, and student and teacher after so many steps."""
    blocks = []
    for sample in samples:
        cells = ['<span class="role">steps</span>']
        cells += [f'<span class="head">{d.version}</span>' for d in sample.drawings]
        for role in ("student", "teacher"):
            cells.append(f'<span class="role">{role}</span>')
            cells += [
                inline(getattr(d, role)[-1], f"{role} after {d.version} steps")
                for d in sample.drawings
            ]
        blocks.append(
            f'<figure class="sample"><div class="target">{inline(sample.target, "target")}'
            f"<figcaption>{escape(sample.prompt)}<small>the target</small></figcaption></div>"
            f'<div class="scroll">{_grid(cells, len(sample.drawings))}</div></figure>'
        )
    return f'<div class="samples">{"".join(blocks)}</div>'


def trajectories(samples: list[Drawn]) -> str:
    """Clean estimates at each of the K states, one panel per sample and version."""
    versions = [drawing.version for drawing in samples[0].drawings]
    panels = []
    for index, sample in enumerate(samples):
        for drawing in sample.drawings:
            columns = [f"σ {state['sigma']:.3g}" for state in drawing.states] + ["drawn"]
            cells = ["<span></span>", *(f'<span class="head">{name}</span>' for name in columns)]
            for role in ("student", "teacher"):
                cells.append(f'<span class="role">{role}</span>')
                cells += [
                    inline(picture, f"{role}, {name}")
                    for name, picture in zip(columns, getattr(drawing, role))
                ]
            cells.append('<span class="role">apart</span>')
            cells += [f"<span>{state['difference']:.2g}</span>" for state in drawing.states]
            cells.append("<span></span>")
            panels.append(
                f'<figure class="path" data-sample="{index}" data-version="{drawing.version}">'
                f"<figcaption>{escape(sample.prompt)}<small>after {drawing.version} steps</small>"
                f'</figcaption><div class="scroll">{_grid(cells, len(columns))}</div></figure>'
            )
    by_sample = "".join(
        f'<option value="{number}">{number + 1}. {escape(sample.prompt)}</option>'
        for number, sample in enumerate(samples)
    )
    by_version = "".join(f'<option value="{v}">after {v} steps</option>' for v in versions)
    return (
        f'<form id="path-choice" hidden><label>sample <select name="sample">{by_sample}</select>'
        f'</label><label>weights <select name="version">{by_version}</select></label></form>'
        + "".join(panels)
    )


def _grid(cells: list[str], columns: int) -> str:
    return f'<div class="grid" style="--columns:{columns}">{"".join(cells)}</div>'
