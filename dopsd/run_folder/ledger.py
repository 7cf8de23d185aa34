"""The ledger: which samples went into which optimizer step, as the learners themselves say.

``ledger.jsonl`` in the run folder is only ever appended to. A line with ``"start": 40`` says that
training resumed from the state after 40 steps: whatever an earlier attempt had trained from there
on was replaced by what follows. Every other line is one trained step.

Nothing that is trained depends on it: a damaged line costs the record of its step, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dopsd.files import storage
from dopsd.run_folder.files import LEDGER_FILE, SKIPPED_FILE
from dopsd.run_folder.jsonl import JsonLines
from dopsd.run_folder.lines import is_count


class Ledger:
    """The one writer of ledger and list of skipped steps in a run ``folder``."""

    def __init__(self, folder: str) -> None:
        self._lines = JsonLines(storage.join(folder, LEDGER_FILE), is_ledger_line)
        self._skipped = JsonLines(storage.join(folder, SKIPPED_FILE), is_trained_step)
        entries = self._lines.keep(lambda entry: True)
        self.attempt = max((entry["attempt"] for entry in entries), default=0)
        """Number of the current attempt; the first is 1."""
        self._shares: dict[int, dict[int, TrainedShare]] = {}
        self._lost: list[str] = []

    def begin(self, step: int, plan: str = "") -> int:
        """A new attempt resumes from ``step`` of the plan with that key; returns its number."""
        self._tell_lost(step)
        self.attempt += 1
        self._shares = {}
        self._skipped.keep(lambda entry: entry["step"] < step)
        self._lines.append({"attempt": self.attempt, "start": step, "plan": plan})
        return self.attempt

    def _tell_lost(self, step: int) -> None:
        """What damage took of the steps before ``step``; those from there on are trained anew, and
        so the ledger is whole again as far as they go."""
        if not self._lines.notices:
            return
        steps, _ = effective(self._lines.keep(lambda entry: True))
        missing = [number for number in range(step) if number not in steps]
        if missing:
            count = f"{len(missing)} step{'s' * (len(missing) > 1)} from {missing[0]} on"
            self._lost = [
                f"{self._lines.path}: no record of {count}; the weights of step {step} are not "
                "touched by that; put the lines back from a copy, or `dopsd verify` counts them "
                "as lost"
            ]

    @property
    def notices(self) -> list[str]:
        """What of the files was damaged, and what that took."""
        return self._lines.notices + self._lost + self._skipped.notices

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


def effective(entries: Iterable[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """(the trained steps behind the final weights, steps that one attempt trained twice).

    Of a step that several attempts trained, the last counts: it resumed from a state without it.
    That holds too where the line of an attempt's start was damaged.
    """
    steps: dict[int, dict[str, Any]] = {}
    twice = []
    for entry in entries:
        begins = "start" in entry
        number = entry["start" if begins else "step"]
        if begins or (number in steps and steps[number]["attempt"] < entry["attempt"]):
            steps = {step: line for step, line in steps.items() if step < number}
        if begins:
            continue
        if number in steps:
            twice.append(number)
        else:
            steps[number] = entry
    return steps, twice


def is_ledger_line(entry: dict[str, Any]) -> bool:
    """Whether an entry is a line of the ledger: an attempt's start, or a trained step."""
    if "start" not in entry:
        return is_trained_step(entry)
    plan = isinstance(entry.get("plan", ""), str)
    return plan and is_count(entry["attempt"], 1) and is_count(entry["start"])


def is_trained_step(entry: dict[str, Any]) -> bool:
    """Whether an entry says what went into a step."""
    return (
        is_count(entry["attempt"], 1)
        and all(is_count(entry[key]) for key in ("step", "policy_version", "teacher_version"))
        and all(isinstance(name, str) for batch in entry["micro_batches"] for name in batch)
        and isinstance(entry.get("skipped", False), bool)
    )


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
