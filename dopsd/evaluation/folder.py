"""The output folder of an evaluation and its record: what in it is ours."""

from __future__ import annotations

from dopsd.errors import StorageError
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder
from dopsd.readers import json_value

RESULTS, TABLE, PAGE = "results.json", "results.md", "results.html"
PROMPTS = "prompts.jsonl"
PICTURES, SCORES, REFERENCES = "pictures/", "scores/", "references/"
_MADE = (RESULTS, TABLE, PAGE, PROMPTS, PICTURES, SCORES, REFERENCES)


def owned(out: str) -> OwnedFolder:
    """The folder and its record; the evaluation of a dopsd that kept none is taken into one, as
    its results show it to be ours."""
    own = OwnedFolder(out, "evaluation", "--out")
    if own.record() is None and _is_evaluation(own.file(RESULTS)):
        names = storage.names(out)
        texts = [name for name in names if name.startswith("prompts-") and name.endswith(".jsonl")]
        own.adopt(*(name for name in _MADE if name.rstrip("/") in names), *texts)
    return own


def check_out(out: str) -> None:
    """Raises ConfigError unless an evaluation may be written there, before anything is drawn."""
    storage.check_writable("--out", out)
    owned(out).check(*_MADE)


def _is_evaluation(path: str) -> bool:
    try:
        values = json_value(storage.read_bytes(path))
        return {"rows", "relatives", "columns", "settings"} <= values.keys()
    except (OSError, StorageError, ValueError, AttributeError):
        return False
