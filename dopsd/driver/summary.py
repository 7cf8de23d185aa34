"""What a finished run says of itself: ``summary.json`` and the run page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dopsd import storage
from dopsd.report.page import write_report
from dopsd.run_folder.files import (
    REPORT_FILE,
    SUMMARY_FILE,
)


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
    """Means over the first and last steps (``run_log.loss_steps``): a single step's loss is mostly
    its samples."""
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


def write_page(summary: Summary) -> None:
    """The run page, which shows the summary, and the summary, which names the page."""
    summary.page = storage.join(summary.folder, REPORT_FILE)
    write_summary(summary)
    try:
        write_report(summary.folder)
    except Exception as error:  # a page is not worth a finished run
        summary.page = None
        summary.problems.append(f"run page: {' '.join(str(error).split())}")
        write_summary(summary)


def write_summary(summary: Summary) -> None:
    text = json.dumps(asdict(summary), indent=1) + "\n"
    storage.write_bytes(storage.join(summary.folder, SUMMARY_FILE), text.encode())
