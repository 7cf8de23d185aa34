"""The run page: one self-contained HTML file about a run, without any network.

Each section is a function of ``SECTIONS`` from the run's files to HTML. Whatever comes from a user
(captions, paths, config values) is escaped by the templates in ``assets/``.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from markupsafe import Markup

from dopsd.config import DataSection, RunConfig, dump_config
from dopsd.config.load import dump_yaml
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.models.lora.layers import STUDENT
from dopsd.readers import read_json
from dopsd.report.chart import curves
from dopsd.report.evaluation import steps_kept
from dopsd.report.lanes import timeline
from dopsd.report.pictures import DrawnSample, inline, read_drawn, read_prompts
from dopsd.report.records import EvaluationRecord, PreflightRecord
from dopsd.report.run_files import RunFiles, read_run_files
from dopsd.report.templates import fill, nothing
from dopsd.run_folder.commands import next_command
from dopsd.run_folder.files import (
    LORA_FILE,
    MODULES,
    PREFLIGHT_REPORT,
    PREFLIGHT_SHEET,
    PREVIEW,
    PREVIEW_SHEET,
    REPORT_FILE,
    TRANSFORMERS,
    RunFolder,
    weights_file,
)
from dopsd.run_folder.outputs import check_report, owned
from dopsd.run_folder.preview_files import kept_versions, prompt_path
from dopsd.run_folder.prompt_history import drawn_while_training

EVALUATION = "evaluation/results.json"
"""Of a run folder: what ``dopsd evaluate --out RUN/evaluation`` found."""
_QUARANTINED = 50
"""Quarantined samples that are listed; the manifest has all."""
_WALL = "wall_seconds"
_MARK = b'<meta name="generator" content="dopsd">'
"""By this a page is known as ours where no record says so."""


def write_report(folder: str) -> str:
    """Write the run page into ``folder`` and return its path. Raises DataError for no run, and
    ConfigError when something else has the page's place."""
    page = render(read_run_files(folder)).encode()
    check_report(folder, _MARK)
    own, run = owned(folder), RunFolder(folder)
    if own.record() is None:  # of a dopsd that kept none; to begin one is for who resumes it
        run.write(REPORT_FILE, page)
    else:
        own.write(REPORT_FILE, page)
    return run.file(REPORT_FILE)


def render(run: RunFiles) -> str:
    """The whole page."""
    sections = [(title, section(run)) for title, section in SECTIONS]
    return fill(
        "page",
        sections=[(title, content) for title, content in sections if content],
        run_name=run.config.run.name,
        folder=run.folder,
        state=run.state,
        live=run.live,
    )


def named_pictures(run: RunFiles) -> set[str]:
    """The files of the folder that the page names for its pictures."""
    drawn = run.history.pictures if run.history else []
    return {PREFLIGHT_SHEET, PREVIEW_SHEET, *(prompt_path(d.version, d.prompt) for d in drawn)}


def _summary(run: RunFiles) -> Markup:
    config, summary = run.config, run.summary
    last = run.metrics[-1] if run.metrics else {}
    steps = f"{len(run.metrics)} of {config.learner.steps}"
    facts: list[tuple[str, str]] = [
        ("state", "finished" if summary else "not finished"),
        ("optimizer steps", str(summary.steps) if summary else steps),
    ]
    if summary:
        if summary.first_loss is not None and summary.last_loss is not None:
            losses = f"{summary.first_loss:.4g} → {summary.last_loss:.4g}"
            facts.append(("mean loss, first and last steps", losses))
        facts += [
            ("duration", _duration(summary.seconds)),
            ("until the first step", _duration(summary.seconds_to_first_step)),
        ]
    elif "loss" in last:
        facts.append(("last loss", f"{last['loss']:.4g}"))
    samples, wall = (sum(line.get(k, 0) for line in run.metrics[1:]) for k in ("samples", _WALL))
    if wall:
        facts.append(("samples per second", f"{samples / wall:.3g}"))
    facts += [
        ("policy lag", f"{config.max_policy_lag} at most"),
        ("source of batches", config.source),
        ("base", config.model.base),
        ("seed", str(config.run.seed)),
    ]
    return fill("summary", facts=facts, problems=summary.problems if summary else ())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _timeline(run: RunFiles) -> Markup:
    return timeline(run.timeline) or nothing("No task has been recorded.")


@lru_cache(maxsize=1)
def _drawn(run: RunFiles) -> list[DrawnSample]:
    return read_drawn(run.history, run.picture) if run.history else []


def _preflight(run: RunFiles) -> Markup:
    if not {PREFLIGHT_REPORT, PREFLIGHT_SHEET} <= dict(run.files).keys():
        return nothing("Not run (preflight.mode is off, or the objective has no teacher).")
    path = RunFolder(run.folder).file(PREFLIGHT_REPORT)
    record = read_json(path, PreflightRecord)
    return fill(
        "preflight", record=record, sheet=run.picture(PREFLIGHT_SHEET), file=PREFLIGHT_SHEET
    )


_NOT_DRAWN = "Nothing was drawn (preview.samples, or the run is not finished)."


def _over_training(run: RunFiles) -> Markup:
    if samples := _drawn(run):
        return fill("over_training", samples=samples)
    if PREVIEW_SHEET in dict(run.files):
        return inline(run.picture(PREVIEW_SHEET), "contact sheet", limit=1200, file=PREVIEW_SHEET)
    return nothing(_NOT_DRAWN)


def _prompts(run: RunFiles) -> Markup:
    if run.history and (prompts := read_prompts(run.history, run.picture)):
        return fill("prompts", prompts=prompts)
    if not run.config.preview.prompts:
        return Markup()
    when = "after training"
    if drawn_while_training(run.config):
        when = f"by rollout workers that are idle, and what is left {when}"
    return nothing(f"Not drawn yet: they are, {when}.")


def _use(run: RunFiles) -> Markup:
    folder, names = RunFolder(run.folder), dict(run.files)

    def paths(*wanted: str) -> list[str | None]:
        return [folder.file(name) if name in names else None for name in wanted]

    transformer = TRANSFORMERS[STUDENT]
    trained = paths(LORA_FILE, MODULES[STUDENT])
    if any(name.startswith(f"{transformer}/") for name in names):
        trained.append(folder.file(transformer))
    kept = []
    for version in kept_versions(run.config):
        lora, modules = (weights_file(PREVIEW, version, STUDENT, kind) for kind in (False, True))
        if lora in names:
            command = next_command(run.config, *paths(lora, modules))
            kept.append((version, lora, command))
    if not kept and not any(trained):
        return nothing("Nothing is exported yet.")
    last = next_command(run.config, *trained) if any(trained) else ""
    return fill("use", last=last, kept=kept)


def _trajectories(run: RunFiles) -> Markup:
    samples = _drawn(run)
    return fill("trajectories", samples=samples) if samples else nothing(_NOT_DRAWN)


def _steps_kept(run: RunFiles) -> Markup:
    if EVALUATION not in dict(run.files):
        command = shlex.join(["dopsd", "evaluate", "--lora", run.folder, "--steps-kept"])
        out = shlex.quote(storage.join(run.folder, EVALUATION.rpartition("/")[0]))
        return nothing(f"Not drawn. {command} --out {out} (with the run's --base) does it.")
    try:
        return steps_kept(read_json(RunFolder(run.folder).file(EVALUATION), EvaluationRecord))
    except DataError as error:  # the folder is the user's to fill
        return nothing(str(error))


def _data(run: RunFiles) -> Markup:
    manifest = run.manifest
    if manifest is None:
        return nothing(f"{run.config.shards} cannot be seen from here.")
    buckets = sorted(manifest.buckets.items(), key=lambda item: -item[1])
    return fill("data", manifest=manifest, buckets=buckets, listed=_QUARANTINED)


def _config(run: RunFiles) -> Markup:
    # A config without data is refused, so the defaults get a source that no run has.
    default = RunConfig(data=DataSection(source="-")).model_dump(mode="json")
    changed = dump_yaml(_difference(run.config.model_dump(mode="json"), default))
    return fill("config", changed=changed, whole=dump_config(run.config))


def _difference(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            if inner := _difference(value, default[key]):
                different[key] = inner
        elif value != default.get(key):
            different[key] = value
    return different


def _files(run: RunFiles) -> Markup:
    folders: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, size in run.files:
        if name != REPORT_FILE:
            folders[name.rpartition("/")[0]].append((name, size))
    return fill("files", folders=sorted(folders.items()), links=not run.live)


SECTIONS: tuple[tuple[str, Callable[[RunFiles], Markup]], ...] = (
    ("Prompts", _prompts),
    ("Over training", _over_training),
    ("Preflight", _preflight),
    ("Draw with it", _use),
    ("Summary", _summary),
    ("Curves", curves),
    ("Timeline", _timeline),
    ("Steps kept", _steps_kept),
    ("Trajectories", _trajectories),
    ("Data", _data),
    ("Config", _config),
    ("Files", _files),
)
"""Title and content, in the order of the page: pictures first. One without content is left out."""
