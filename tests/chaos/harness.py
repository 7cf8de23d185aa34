"""A run under a seeded schedule of faults, compared with the undisturbed one.

Each run is a process of its own with a Ray cluster of its own; the faults strike the processes of
that cluster, found by the titles that Ray gives them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from dopsd.export import read_lora
from dopsd.json_lines import read_lines
from dopsd.runtime.ledger import LEDGER_FILE
from dopsd.runtime.verify import Verdict, verify_run

ROLES = {
    "inference": "ray::InferenceWorker",
    "encoder": "ray::MapWorker(MapBatches(_Encode))",
    "learner": "ray::RayTrainWorker",
    "coordinator": "ray::RunCoordinator",
}
"""How the titles of a role's processes begin. Roll-out and teacher workers are one class."""
HANGS = ("inference", "learner")
"""Roles whose hanging is noticed by a deadline of their own."""
_HANG_SHARE = 0.15


@dataclass(frozen=True)
class Fault:
    """One blow: struck once ``step`` steps are in the ledger."""

    step: int
    role: str
    hang: bool
    delay: float
    """Seconds that it waits then, so that it strikes anywhere in a step."""

    @property
    def name(self) -> str:
        return f"{self.role} {'hangs' if self.hang else 'killed'}"


@dataclass
class Outcome:
    """What became of a run."""

    code: int
    output: str
    seconds: float
    struck: list[tuple[Fault, float]] = field(default_factory=list)
    """Each fault and the seconds until a step was trained that had not been trained before."""


def schedule(
    kills: int, steps: int, seed: int, roles: tuple[str, ...] = tuple(ROLES), hangs: bool = True
) -> list[Fault]:
    """``kills`` faults, spread over the steps; each role gets its turn, in a shuffled order."""
    rng = random.Random(seed)
    turns: list[str] = []
    while len(turns) < kills:
        turns += rng.sample(roles, len(roles))
    faults = []
    for number, role in enumerate(turns[:kills]):
        step = 1 + round(number * (steps - 2) / max(1, kills))
        hang = hangs and role in HANGS and rng.random() < _HANG_SHARE
        faults.append(Fault(step, role, hang, rng.uniform(0.0, 2.0)))
    return faults


def run(words: list[str], folder: Path, faults: list[Fault], limit: float) -> Outcome:
    """``dopsd train WORDS`` under ``faults``; ends it after ``limit`` seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "dopsd.cli", "train", *words, f"run.folder={folder}"]
    command.append("--overwrite")
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(-1, "", 0.0)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            _strike_all(process, folder, list(faults), outcome, began + limit)
            outcome.code = process.wait(timeout=max(1.0, began + limit - time.monotonic()))
        finally:
            _end(process)
    outcome.output, outcome.seconds = log.read_text(), time.monotonic() - began
    return outcome


def _strike_all(
    process: subprocess.Popen, folder: Path, faults: list[Fault], outcome: Outcome, end: float
) -> None:
    open_since: list[tuple[Fault, float, int]] = []
    while process.poll() is None and time.monotonic() < end and (faults or open_since):
        highest = _highest(folder)
        now = time.monotonic()
        for entry in [entry for entry in open_since if highest > entry[2]]:
            open_since.remove(entry)
            outcome.struck.append((entry[0], now - entry[1]))
        if faults and not open_since and highest >= faults[0].step:
            time.sleep(faults[0].delay)
            if _strike(process, faults[0]):
                open_since.append((faults.pop(0), time.monotonic(), _highest(folder)))
        time.sleep(0.1)
    now = time.monotonic()
    outcome.struck += [(fault, now - since) for fault, since, _ in open_since]


def _highest(folder: Path) -> int:
    """Steps that the ledger has seen trained at least once."""
    entries = read_lines(str(folder / LEDGER_FILE))
    return max((entry["step"] + 1 for entry in entries if "step" in entry), default=0)


def _strike(process: subprocess.Popen, fault: Fault) -> bool:
    """Hit one process of the role, if there is one."""
    title = ROLES[fault.role]
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(title):
                found.append(child)
        except psutil.Error:
            continue
    if not found:
        return False
    victim = sorted(found, key=lambda child: child.pid)[fault.step % len(found)]
    try:
        victim.send_signal(signal.SIGSTOP if fault.hang else signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def _end(process: subprocess.Popen) -> None:
    """Nothing of a run may stay behind, stopped processes least of all."""
    try:
        left = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        left = []
    process.kill()
    process.wait()
    for child in left:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


@dataclass
class Report:
    """A disturbed run beside the undisturbed one."""

    undisturbed: Outcome
    disturbed: Outcome
    verdict: Verdict | None
    difference: float
    """Largest difference of the final adapters; nan when there is none to compare."""
    planned: int
    """Faults of the schedule; some strike nobody when the run ends before their turn."""

    @property
    def survived(self) -> bool:
        good = self.verdict is not None and self.verdict.agrees
        struck = bool(self.disturbed.struck) or not self.planned  # else nothing was tried
        return self.disturbed.code == 0 and good and self.difference == 0.0 and struck

    def lines(self) -> list[str]:
        """A Markdown table and what was found."""
        struck = self.disturbed.struck
        counts = Counter(fault.name for fault, _ in struck)
        rows = ["| fault | times | seconds until the next new step (mean) |", "|---|---|---|"]
        for name, count in sorted(counts.items()):
            seconds = [lost for fault, lost in struck if fault.name == name]
            rows.append(f"| {name} | {count} | {sum(seconds) / count:.0f} |")
        verdict = self.verdict.lines() if self.verdict else ["no ledger to verify"]
        equal = "yes" if self.difference == 0.0 else f"NO, apart by {self.difference:g}"
        extra = self.disturbed.seconds - self.undisturbed.seconds
        return [
            *rows,
            "",
            *verdict,
            f"adapter equal: {equal}; {len(struck)} of {self.planned} faults struck, "
            f"{extra:.0f} s longer than undisturbed "
            f"({self.undisturbed.seconds:.0f} s); exit code {self.disturbed.code}",
        ]


def compare(words: list[str], folder: Path, faults: list[Fault], limit: float) -> Report:
    """Run ``words`` undisturbed (unless those very words were already) and under ``faults``."""
    calm, record = folder / "undisturbed", folder / "undisturbed.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("words") == words and (calm / "summary.json").exists():
        undisturbed = Outcome(0, "", known["seconds"])
    else:
        record.unlink(missing_ok=True)
        undisturbed = run(words, calm, [], limit)
        if undisturbed.code:
            raise RuntimeError(f"the undisturbed run failed:\n{undisturbed.output[-2000:]}")
        record.write_text(json.dumps({"words": words, "seconds": undisturbed.seconds}))
    wild = folder / "disturbed"
    disturbed = run(words, wild, faults, limit)
    verdict = verify_run(str(wild)) if (wild / LEDGER_FILE).exists() else None
    apart = float("nan")
    if disturbed.code == 0:
        apart = difference(calm / "lora.safetensors", wild / "lora.safetensors")
    return Report(undisturbed, disturbed, verdict, apart, len(faults))


def difference(one: Path, other: Path) -> float:
    """Largest difference between two exported LoRAs."""
    first, second = read_lora(os.fspath(one)), read_lora(os.fspath(other))
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max()) for n in first) if first else torch.nan
