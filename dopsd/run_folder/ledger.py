"""The ledger: which samples went into which optimizer step, as the learners themselves say.

``ledger.jsonl`` in the run folder is only ever appended to. A line with ``"start": 40`` says that
training resumed from the state after 40 steps: whatever an earlier attempt had trained from there
on was replaced by what follows. Every other line is one trained step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dopsd import storage
from dopsd.run_folder.files import LEDGER_FILE, SKIPPED_FILE
from dopsd.run_folder.jsonl import JsonLines, read_lines


class Ledger:
    """The one writer of ledger and list of skipped steps in a run ``folder``."""

    def __init__(self, folder: str) -> None:
        self._lines = JsonLines(storage.join(folder, LEDGER_FILE))
        self._skipped = JsonLines(storage.join(folder, SKIPPED_FILE))
        entries = read_lines(self._lines.path)
        self.attempt = max((entry["attempt"] for entry in entries), default=0)
        """Number of the current attempt; the first is 1."""
        self._shares: dict[int, dict[int, TrainedShare]] = {}

    def begin(self, step: int, plan: str = "") -> int:
        """A new attempt resumes from ``step`` of the plan with that key; returns its number."""
        self.attempt += 1
        self._shares = {}
        self._skipped.keep(lambda entry: entry["step"] < step)
        self._lines.append({"attempt": self.attempt, "start": step, "plan": plan})
        return self.attempt

    def add(self, step: int, share: TrainedShare) -> None:
        """Take what one rank trained; the step is written when every rank has reported."""
        shares = self._shares.setdefault(step, {})
        shares[share.rank] = share
        if len(shares) < share.world:
            return
        del self._shares[step]
        parts = {k: ids for share in shares.values() for k, ids in share.micro_batches.items()}
        line = {
            "attempt": self.attempt,
            "step": step,
            "policy_version": share.policy_version,
            "teacher_version": share.teacher_version,
            "micro_batches": [list(parts[index]) for index in sorted(parts)],
        }
        if share.skipped:
            line["skipped"] = True
            self._skipped.append(line)
        self._lines.append(line)

    def flush(self) -> None:
        """Bring the files up to date. Raises whatever the storage raises."""
        self._lines.flush()
        self._skipped.flush()


def effective(entries: list[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """(the trained steps behind the final weights, steps that one attempt trained twice).

    Of a step that several attempts trained, the last counts: it resumed from a state without it.
    """
    steps: dict[int, dict[str, Any]] = {}
    twice = []
    for entry in entries:
        if "start" in entry:
            steps = {step: line for step, line in steps.items() if step < entry["start"]}
        elif entry["step"] in steps:
            twice.append(entry["step"])
        else:
            steps[entry["step"]] = entry
    return steps, twice


@dataclass
class TrainedShare:
    """What one rank put into one optimizer step, padding left out, for the ledger."""

    rank: int
    world: int
    micro_batches: dict[int, tuple[str, ...]]
    """Sample ids by position within the step."""
    policy_version: int
    teacher_version: int
    skipped: bool
    """The gradients were not finite: weights, optimizer and teacher stayed as they were."""
