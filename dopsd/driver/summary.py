"""What a finished run says of itself: ``summary.json`` and the run page."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from dopsd.config import RunConfig
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.drawing.preview import draw_preview
from dopsd.driver.setup.run_setup import RunSetup
from dopsd.errors import DopsdError
from dopsd.files import storage
from dopsd.models.lora.layers import STUDENT
from dopsd.readers import read_json
from dopsd.report.page import write_report
from dopsd.run_folder.files import (
    LORA_FILE,
    MODULES,
    PREVIEW_SHEET,
    REPORT_FILE,
    SUMMARY_FILE,
    TRANSFORMERS,
    RunFolder,
)
from dopsd.run_folder.outputs import owned, seal_outputs
from dopsd.signals import end_if_asked


@dataclass
class Summary:
    """What a run leaves behind; ``summary.json`` in the run folder holds the same."""

    folder: str
    lora: str | None
    """None of a run that trained all weights."""
    sheet: str | None
    """None when no preview was asked for, or when it failed (see ``problems``)."""
    page: str | None
    """The run page; None when it could not be written."""
    steps: int
    seconds: float
    seconds_to_first_step: float
    max_policy_lag: int
    first_loss: float
    last_loss: float
    """Means over the first and last steps (``run_folder.log.loss_steps``): a single step's loss is
    mostly its samples."""
    transformer: str | None = None
    """Folder of the trained transformer, of a run that trained all weights."""
    modules: str | None = None
    """What was trained beside the LoRA."""
    adapted: dict[str, int] = field(default_factory=dict)
    """Modules that the LoRA adapts, by target, and tensors that were trained whole."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last step."""
    problems: list[str] = field(default_factory=list)
    """What went wrong after training: nothing of it touches the LoRA."""

    @classmethod
    def read(cls, folder: str) -> Summary:
        """Of a run that is finished. Raises DataError for a summary that cannot be read."""
        summary = read_json(RunFolder(folder).file(SUMMARY_FILE), cls)
        if summary.page is None:  # a run that was killed after its export, for one
            summary.problems.append(f"no run page; dopsd report {shlex.quote(folder)} writes it")
        return summary

    @classmethod
    def of_training(
        cls, setup: RunSetup, status: RunStatus, problems: list[str], first_step: float
    ) -> Summary:
        """Of a run whose learners have ended; ``first_step``: seconds until it was done."""
        config, run = setup.config, RunFolder(setup.config.run.folder)
        full, modules = config.adapters == "full", config.adapters == "lora+modules"
        return cls(
            folder=run.path,
            lora=None if full else run.file(LORA_FILE),
            transformer=run.file(TRANSFORMERS[STUDENT]) if full else None,
            modules=run.file(MODULES[STUDENT]) if modules else None,
            sheet=None,
            page=None,
            steps=status.step,
            seconds=0.0,
            seconds_to_first_step=first_step,
            max_policy_lag=config.max_policy_lag,
            first_loss=status.losses[0],
            last_loss=status.losses[1],
            adapted=setup.trainable,
            last=status.latest,
            problems=problems,
        )


def finish(summary: Summary, setup: RunSetup, began: float) -> Summary:
    """Write the summary, draw the contact sheet, write the run page; nothing of it may cost what
    was trained. ``began``: ``time.monotonic()`` of the command's start."""
    summary.seconds = time.monotonic() - began
    write_summary(summary)
    end_if_asked()
    seal_outputs(summary.folder)
    config = setup.config
    if config.preview.draws:
        setup.show("preview", _to_draw(config))
        try:
            summary.problems += draw_preview(config, setup.manifest, setup.roles.learner)
        except (DopsdError, OSError) as error:
            summary.problems.append(str(error))
        sheet = RunFolder(summary.folder).file(PREVIEW_SHEET)
        summary.sheet = sheet if storage.exists(sheet) else None
    summary.seconds = time.monotonic() - began
    # The page shows the summary, which names the page.
    summary.page = RunFolder(summary.folder).file(REPORT_FILE)
    write_summary(summary)
    try:
        write_report(summary.folder)
    except Exception as error:  # a page is not worth a finished run
        summary.page = None
        summary.problems.append(f"run page: {' '.join(str(error).split())}")
        write_summary(summary)
    return summary


def _to_draw(config: RunConfig) -> str:
    rows, prompts = config.preview.samples, len(config.preview.prompts)
    parts = [f"{rows} rows"] * bool(rows) + [f"{prompts} prompts"] * bool(prompts)
    return " and ".join(parts)


def write_summary(summary: Summary) -> None:
    text = json.dumps(asdict(summary), indent=1) + "\n"
    owned(summary.folder).write(SUMMARY_FILE, text.encode())
