"""What the run page shows, read from a run folder (local or s3://), finished or not."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from dopsd.config import RunConfig
from dopsd.data.manifest import Manifest, has_manifest, load_manifest
from dopsd.errors import ConfigError, DataError, DopsdError, message_line
from dopsd.files import storage
from dopsd.readers import read_json
from dopsd.report.records import HistoryRecord, SummaryRecord, numbers, spans
from dopsd.run_folder.files import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, TIMELINE_FILE, RunFolder
from dopsd.run_folder.jsonl import part_names
from dopsd.run_folder.lines import Valid, parse_lines
from dopsd.run_folder.log import is_metrics
from dopsd.run_folder.preview_files import HISTORY
from dopsd.run_folder.timeline import is_span

Record = TypeVar("Record", SummaryRecord, HistoryRecord)


@dataclass(eq=False)
class RunFiles:
    """A run folder's records. What a run has not written (yet) is empty or None."""

    folder: str
    config: RunConfig
    summary: SummaryRecord | None
    """None while the run is not finished."""
    metrics: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    manifest: Manifest | None
    history: HistoryRecord | None
    files: list[tuple[str, int]]
    """(path inside the folder, bytes) of every file, by path."""
    live: bool = False
    """Its page is served, and not a file in the folder."""

    @property
    def state(self) -> str:
        """How the run stands, in a few words."""
        if self.summary:
            return f"finished, {self.summary.steps} steps"
        return f"not finished: step {len(self.metrics)} of {self.config.learner.steps}"

    def picture(self, name: str) -> Image.Image:
        """A picture of the folder, RGB. Raises DataError for a file that is none."""
        try:
            return Image.open(io.BytesIO(RunFolder(self.folder).read(name))).convert("RGB")
        except DopsdError:
            raise
        except Exception as error:  # PIL raises many kinds
            path = RunFolder(self.folder).file(name)
            raise DataError(f"{path}: no picture that can be read: {message_line(error)}") from None


def read_run_files(folder: str) -> RunFiles:
    """Raises DataError when ``folder`` holds no run, or a config of another dopsd."""
    files = storage.list_files(folder)
    names = {name for name, _ in files}
    if CONFIG_FILE not in names:
        raise DataError(f"{folder}: no {CONFIG_FILE}; allowed: the folder of a run")

    run = RunFolder(folder)

    def lines(name: str, valid: Valid) -> list[dict[str, Any]]:
        parts = part_names(name, names)
        return [entry for part in parts for entry in parse_lines(run.read(part), valid).entries]

    def record(name: str, shape: type[Record]) -> Record | None:
        return read_json(run.file(name), shape) if name in names else None

    try:
        config = run.config()
    except ConfigError as error:
        path = run.file(CONFIG_FILE)
        why = str(error).removeprefix(f"config {path}: ")
        raise DataError(f"{path}: not a config of this dopsd ({why})") from None
    shards = run.shards(config)
    return RunFiles(
        folder=folder,
        config=config,
        summary=record(SUMMARY_FILE, SummaryRecord),
        metrics=numbers(lines(METRICS_FILE, is_metrics)),
        timeline=spans(lines(TIMELINE_FILE, is_span), run.file(TIMELINE_FILE)),
        manifest=load_manifest(shards) if has_manifest(shards) else None,
        history=record(HISTORY, HistoryRecord),
        files=files,
    )
