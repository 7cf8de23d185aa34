"""`dopsd report A B`: runs side by side on one self-contained page: what they draw for the same
prompts, their curves in one chart each, and what their configs differ in."""

from __future__ import annotations

import json
import math
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from PIL import Image

from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.report.chart import Series, chart, smooth
from dopsd.report.look import check_page
from dopsd.report.pictures import read_drawn, read_prompts
from dopsd.report.run_files import RunFiles, read_run_files
from dopsd.report.templates import fill, nothing

MOST = 8
"""Runs of a page: there are as many colours."""
_SMOOTH = 10
"""Steps of a running mean: of single ones several runs could not be told apart."""
_CURVES = (
    ("Loss", "loss", f"mean of {_SMOOTH} steps", True),
    ("Gradient norm", "grad_norm", f"mean of {_SMOOTH} steps", True),
    ("Throughput", "samples_per_second", f"samples / s, mean of {_SMOOTH} steps", False),
    ("Learning rate", "lr", "", False),
    ("Effective learning rate", "effective_lr", "", True),
)
"""Title, key of the metrics, unit, and whether the axis is logarithmic."""
_ITS_OWN = "run.folder"
"""No two runs agree in it."""
_NONE = "none"


@dataclass
class Row:
    """One prompt, and the last that each run has drawn for it."""

    prompt: str
    pictures: list[tuple[str, Image.Image]]
    """(name of the run, and its steps where they are not all of them; picture)."""


def write_comparison(path: str, folders: Sequence[str]) -> None:
    """Write the page about ``folders`` to ``path``. Raises DataError for what is no run, and
    ConfigError for too many, for one that is given twice, or for a place that is taken by what is
    no page of ours."""
    if len(folders) > MOST:
        raise ConfigError(f"report: {len(folders)} runs, allowed: at most {MOST}")
    known = list(map(_place, folders))
    if twice := [folder for folder, place in zip(folders, known) if known.count(place) > 1]:
        raise ConfigError(f"report: {twice[0]} is given twice, allowed: each run once")
    check_page(path, "--out")
    page = render([read_run_files(folder) for folder in folders])
    storage.write_bytes(path, page.encode())


def _place(folder: str) -> str:
    """However it is spelled."""
    return folder.rstrip("/") if storage.is_remote(folder) else os.path.realpath(folder)


def render(runs: Sequence[RunFiles]) -> str:
    """The whole page."""
    names = run_names([run.folder for run in runs])
    named = dict(zip(names, runs))
    sections: list[tuple[str, Markup]] = [
        ("Pictures", _pictures(named)),
        ("Summary", _summary(named)),
        ("Curves", _curves(named)),
        ("Differences", _differences(named)),
    ]
    title = " / ".join(names)
    folders = ", ".join(run.folder for run in runs)
    return fill("page", sections=sections, run_name=title, folder=folders)


def run_names(folders: Sequence[str]) -> list[str]:
    """Short names that tell the folders apart: as many of the last parts of their paths as it
    takes."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [posixpath.join(*part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)


def rows(runs: Mapping[str, RunFiles]) -> list[Row]:
    """Of own prompts and of samples each that any run drew, with the last picture of each run."""
    found: dict[tuple[str, str], Row] = {}
    for name, run in runs.items():
        if run.history is None:
            continue
        own = read_prompts(run.history, run.picture)
        drawn = [("own", p.prompt, [(d.version, d.picture) for d in p.drawings]) for p in own]
        samples = read_drawn(run.history, run.picture)
        drawn += [
            ("sample", s.prompt, [(d.version, d.student[-1]) for d in s.drawings]) for s in samples
        ]
        seen = set()
        for kind, prompt, pictures in drawn:
            row = found.setdefault((kind, prompt), Row(prompt, []))
            if pictures and (kind, prompt) not in seen:
                seen.add((kind, prompt))
                version, picture = pictures[-1]
                ended = version == run.config.learner.steps
                row.pictures.append((name if ended else f"{name}, step {version}", picture))
    ordered = sorted(found.items(), key=lambda item: item[0][0])  # stable: own prompts first
    return [row for _, row in ordered if row.pictures]


def differences(runs: Mapping[str, RunFiles]) -> list[tuple[str, list[str]]]:
    """(dotted key, value of each run) of what the configs do not agree in."""
    flat = [_flat(run.config.model_dump(mode="json")) for run in runs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    table = [(key, [values.get(key, _NONE) for values in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1 and key != _ITS_OWN]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[prefix + key] = text
    return flat


def _pictures(runs: Mapping[str, RunFiles]) -> Markup:
    found = rows(runs)
    return fill("side_by_side", rows=found) if found else nothing("No run has drawn anything.")


def _summary(runs: Mapping[str, RunFiles]) -> Markup:
    facts: dict[str, list[str]] = {}
    for run in runs.values():
        for name, value in _facts(run).items():
            facts.setdefault(name, []).append(value)
    return fill("runs_table", head="", names=list(runs), rows=list(facts.items()))


def _facts(run: RunFiles) -> dict[str, str]:
    summary = run.summary
    losses = (summary.first_loss, summary.last_loss) if summary else (None, None)
    shown = [_NONE if loss is None else f"{loss:.4g}" for loss in losses]
    return {
        "state": run.state,
        "mean loss of the first steps": shown[0],
        "mean loss of the last steps": shown[1],
        "seconds": f"{summary.seconds:.0f}" if summary else _NONE,
        "base": run.config.model.base,
    }


def _curves(runs: Mapping[str, RunFiles]) -> Markup:
    charts = []
    for title, key, unit, log in _CURVES:
        lines = []
        for name, run in runs.items():
            values = [float(line.get(key, math.nan)) for line in run.metrics]
            lines.append(Series(name, values if key == "lr" else smooth(values, _SMOOTH)))
        charts.append(chart(title, lines, unit, log=log))
    drawn = Markup().join(charts)
    if not drawn:
        return nothing("No run has finished a step.")
    return Markup('<div class="charts">{}</div>').format(drawn)


def _differences(runs: Mapping[str, RunFiles]) -> Markup:
    table = differences(runs)
    if not table:
        return nothing("None: their configs agree in every key.")
    return fill("runs_table", head="key", names=list(runs), rows=table)
