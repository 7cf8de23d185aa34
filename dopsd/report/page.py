"""The run page: one self-contained HTML file about a run, without any network.

Each section is a function of ``SECTIONS`` from the run's files to HTML; whatever comes from a user
(captions, paths, config values) is escaped there.
"""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from dopsd import storage
from dopsd.config import DataSection, RunConfig, dump_config
from dopsd.config.load import dump_yaml
from dopsd.credentials import redact
from dopsd.report.chart import Series, chart, smooth
from dopsd.report.lanes import timeline
from dopsd.report.pictures import Drawn, inline, over_training, read_drawn, trajectories
from dopsd.report.run_files import RunFiles, read_run_files
from dopsd.run_folder.files import REPORT_FILE

_ROLES = ("encoder", "rollout", "teacher", "learner")

_SMOOTH = 10

_QUARANTINED = 50
"""Quarantined samples that are listed; the manifest has all."""

_ASSETS = Path(__file__).parent / "assets"

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load: nothing but what the page holds."""


def write_report(folder: str) -> str:
    """Write the run page into ``folder`` and return its path. Raises DataError for no run."""
    path = storage.join(folder, REPORT_FILE)
    storage.write_bytes(path, render(read_run_files(folder)).encode())
    return path


def render(run: RunFiles) -> str:
    """The whole page."""
    name = escape(run.config.run.name)
    sections, links = [], []
    for title, section in SECTIONS:
        anchor = title.lower().replace(" ", "-")
        links.append(f'<a href="#{anchor}">{title}</a>')
        sections.append(f'<section id="{anchor}"><h2>{title}</h2>{section(run)}</section>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name} · dopsd</title><style>{_asset('page.css')}</style></head><body>"
        f"<header><h1>{name}</h1><p>{escape(redact(run.folder))}</p><nav>{''.join(links)}</nav></header>"
        f"<main>{''.join(sections)}</main><script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _nothing(why: str) -> str:
    return f'<p class="nothing">{escape(why)}</p>'


def _summary(run: RunFiles) -> str:
    config, summary = run.config, run.summary
    last = run.metrics[-1] if run.metrics else {}
    steps = f"{len(run.metrics)} of {config.learner.steps}"
    facts: list[tuple[str, str]] = [
        ("state", "finished" if summary else "not finished"),
        ("optimizer steps", str(summary["steps"]) if summary else steps),
    ]
    if summary:
        first_loss, last_loss = summary["first_loss"], summary["last_loss"]
        facts += [
            ("mean loss, first and last steps", f"{first_loss:.4g} → {last_loss:.4g}"),
            ("duration", _duration(summary["seconds"])),
            ("until the first step", _duration(summary["seconds_to_first_step"])),
        ]
    elif "loss" in last:
        facts.append(("last loss", f"{last['loss']:.4g}"))
    samples, wall = (sum(line.get(k, 0) for line in run.metrics[1:]) for k in ("samples", _WALL))
    if wall:
        facts.append(("samples per second", f"{samples / wall:.3g}"))
    facts += [
        ("policy lag", f"{config.max_policy_lag} at most"),
        ("source of batches", config.source),
        ("base", redact(config.model.base)),
        ("seed", str(config.run.seed)),
    ]
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    problems = "".join(
        f'<p class="problem">{escape(redact(problem))}</p>'
        for problem in (summary or {}).get("problems", ())
    )
    return f"{problems}<dl>{tiles}</dl>"


_WALL = "wall_seconds"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _curves(run: RunFiles) -> str:
    if not run.metrics:
        return _nothing("No step is finished yet.")

    def values(key: str) -> list[float]:
        return [float(line.get(key, math.nan)) for line in run.metrics]

    def roles(suffix: str) -> list[Series]:
        return [Series(role, values(f"{role}_{suffix}")) for role in _ROLES]

    def smoothed(name: str, key: str) -> list[Series]:
        mean = Series(f"mean of {_SMOOTH}", smooth(values(key), _SMOOTH))
        return [mean, Series(name, values(key), faint=True)]

    lag = [Series(r, values(f"{r}_lag"), stepped=True) for r in ("student", "teacher")]
    queue = [
        Series(name, values(f"queue_{key}"))
        for name, key in (("encoded", "blocks"), ("in flight", "in_flight"), ("ready", "ready"))
    ]
    charts = [
        chart("Loss", smoothed("loss", "loss"), f"mean of {_SMOOTH} steps", log=True),
        chart("Policy lag", lag, "optimizer steps"),
        chart("Throughput", smoothed("samples", "samples_per_second"), "samples / s"),
        chart("Busy per step", roles("seconds"), "s, all workers", log=True),
        chart(
            "Idle",
            [Series(s.name, smooth(s.values, _SMOOTH)) for s in roles("idle_fraction")],
            f"fraction, mean of {_SMOOTH} steps",
        ),
        chart("Micro-batches waiting", queue, "count"),
        chart("Gradient norm", smoothed("norm", "grad_norm"), f"mean of {_SMOOTH} steps", log=True),
        chart("Learning rate", [Series("lr", values("lr"))]),
        chart("Peak memory", roles("peak_memory_mb"), "MB per process"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _timeline(run: RunFiles) -> str:
    return timeline(run.timeline) or _nothing("No task has been recorded.")


@lru_cache(maxsize=1)
def _drawn(run: RunFiles) -> list[Drawn]:
    return read_drawn(run.history, run.read) if run.history else []


def _preflight(run: RunFiles) -> str:
    names = dict(run.files)
    if not {"preflight/report.json", "preflight/contact_sheet.png"} <= names.keys():
        return _nothing("Not run (preflight.mode is off, or the objective has no teacher).")
    sentence = json.loads(run.read("preflight/report.json"))["verdict"]["sentence"]
    sheet = Image.open(io.BytesIO(run.read("preflight/contact_sheet.png")))
    return (
        f"<p>Can the teacher draw the concept? {escape(sentence)}</p><details><summary>The base as "
        "student and as teacher, from the same noise</summary>"
        f"{inline(sheet, 'preflight', limit=1200)}</details>"
    )


def _pictures(run: RunFiles) -> str:
    if samples := _drawn(run):
        return (
            "<p>One noise per sample, drawn by the training roll-out with the weights after so "
            "many optimizer steps. The teacher sees what context.name adds to the student's prompt."
            f"</p>{over_training(samples)}"
        )
    sheet = "preview/contact_sheet.png"
    if sheet in dict(run.files):
        return inline(Image.open(io.BytesIO(run.read(sheet))), "contact sheet", limit=1200)
    return _nothing("Nothing was drawn (preview.samples, or the run is not finished).")


def _trajectories(run: RunFiles) -> str:
    if samples := _drawn(run):
        return (
            "<p>What each would draw if it went straight to the end from the student's own state "
            "at noise level σ: the clean estimate x − σu. <em>Apart</em> is their mean squared "
            "difference in latents, the loss with x0 weighting. The last column is where each "
            f"arrives by itself.</p>{trajectories(samples)}"
        )
    return _nothing("Nothing was drawn (preview.samples, or the run is not finished).")


def _data(run: RunFiles) -> str:
    manifest = run.manifest
    if manifest is None:
        return _nothing(f"{redact(run.config.shards)} cannot be seen from here.")
    most = max(manifest.buckets.values(), default=1)
    buckets = "".join(
        f"<tr><td>{escape(bucket)}</td><td class='num'>{count}</td>"
        f"<td class='bar'><i style='width:{100 * count / most:.0f}%'></i></td></tr>"
        for bucket, count in sorted(manifest.buckets.items(), key=lambda item: -item[1])
    )
    concepts = "".join(
        f"<tr><td>{escape(name) or '(none)'}</td><td class='num'>{count}</td></tr>"
        for name, count in manifest.concepts.items()
    )
    captions = "".join(
        f"<tr><td>{escape(key)}</td><td class='num'>{count}</td></tr>"
        for key, count in manifest.caption_keys.items()
    )
    references = ""
    if manifest.without_references < manifest.samples:
        rows = "".join(
            f"<tr><td>{escape(each)}</td><td class='num'>{count}</td></tr>"
            for each, count in manifest.references.items()
        )
        head = "<tr><th>reference pictures</th><th class='num'>samples</th></tr>"
        references = f"<table>{head}{rows}</table>"
    bad = manifest.quarantined
    listed = "".join(
        f"<tr><td>{escape(redact(q.where))}</td><td>{escape(q.sample_id)}</td>"
        f"<td>{escape(q.reason)}</td></tr>"
        for q in bad[:_QUARANTINED]
    )
    more = len(bad) - _QUARANTINED
    quarantine = (
        f"<h3>Quarantined: {len(bad)}</h3><div class='scroll'><table><tr><th>where</th>"
        f"<th>sample</th><th>reason</th></tr>{listed}</table></div>"
        + (f"<p>and {more} more, in the manifest</p>" if more > 0 else "")
        if bad
        else "<h3>Quarantined: none</h3>"
    )
    notes = "".join(f"<p>{escape(redact(note))}</p>" for note in manifest.notes)
    return (
        f"<p>{manifest.samples} of {manifest.seen} samples from "
        f"<code>{escape(redact(manifest.source))}</code>, fingerprint "
        f"<code>{escape(manifest.fingerprint[:16])}</code></p>"
        "<div class='tables'>"
        f"<table><tr><th>bucket</th><th class='num'>samples</th><th></th></tr>{buckets}</table>"
        f"<table><tr><th>concept</th><th class='num'>samples</th></tr>{concepts}</table>"
        f"<table><tr><th>caption key</th><th class='num'>samples</th></tr>{captions}</table>"
        f"{references}</div>{quarantine}{notes}"
    )


def _config(run: RunFiles) -> str:
    whole = dump_config(run.config)
    # A config without data is refused, so the defaults get a source that no run has.
    default = RunConfig(data=DataSection(source="-")).model_dump(mode="json")
    changed = dump_yaml(_difference(run.config.model_dump(mode="json"), default))
    return (
        f"<p>What differs from the defaults:</p><pre>{escape(redact(changed))}</pre>"
        f"<details><summary>Every key</summary><pre>{escape(redact(whole))}</pre></details>"
    )


def _difference(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            if inner := _difference(value, default[key]):
                found[key] = inner
        elif value != default.get(key):
            found[key] = value
    return found


def _files(run: RunFiles) -> str:
    folders: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, size in run.files:
        if name != REPORT_FILE:
            folders[name.rpartition("/")[0]].append((name, size))
    parts = []
    for folder, files in sorted(folders.items()):
        rows = "".join(
            f'<tr><td><a href="{escape(quote(name))}">{escape(name)}</a></td>'
            f'<td class="num">{_size(size)}</td></tr>'
            for name, size in files
        )
        table = f'<div class="scroll"><table>{rows}</table></div>'
        if folder:
            count, total = len(files), sum(size for _, size in files)
            head = f"{escape(folder)}/ <small>{count} files, {_size(total)}</small>"
            table = f"<details><summary>{head}</summary>{table}</details>"
        parts.append(table)
    return "".join(parts) + "<p>Links work where this page lies in its run folder.</p>"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


SECTIONS: tuple[tuple[str, Callable[[RunFiles], str]], ...] = (
    ("Summary", _summary),
    ("Curves", _curves),
    ("Timeline", _timeline),
    ("Preflight", _preflight),
    ("Over training", _pictures),
    ("Trajectories", _trajectories),
    ("Data", _data),
    ("Config", _config),
    ("Files", _files),
)
"""Title and content, in the order of the page."""
