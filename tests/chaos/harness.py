"""A run under a seeded schedule of faults, compared with the undisturbed one.

Each run is a process of its own with a Ray cluster of its own; the faults strike the processes of
that cluster, found by the titles that Ray gives them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dopsd.driver.verify import LedgerReport, verify_run
from dopsd.run_folder.files import LEDGER_FILE
from dopsd.run_folder.jsonl import read_lines
from tests.helpers.loras import difference

ROLES = {
    "rollout": "ray::RolloutWorker",
    "teacher": "ray::TeacherWorker",
    "encoder": "ray::MapWorker(MapBatches(_Encode))",
    "learner": "ray::RayTrainWorker",
    "coordinator": "ray::CoordinatorActor",
}
"""How the titles of a role's processes begin."""
HANGS = ("rollout", "learner", "teacher")
"""Roles whose hanging is noticed by a deadline of their own, in the order of their turns."""


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
    """``kills`` faults, spread over the steps, in shuffled rounds: in each one every role is killed
    and one hangs, another one in the next round."""
    rng = random.Random(seed)
    hanging = [role for role in HANGS if role in roles] if hangs else []
    kinds: list[tuple[str, bool]] = []
    for number in itertools.count():
        if len(kinds) >= kills:
            break
        stopped = [(hanging[number % len(hanging)], True)] if hanging else []
        turn = [(role, False) for role in roles] + stopped
        kinds += rng.sample(turn, len(turn))
    faults = []
    for number, (role, hang) in enumerate(kinds[:kills]):
        step = 1 + round(number * (steps - 2) / max(1, kills))
        faults.append(Fault(step, role, hang, rng.uniform(0.0, 2.0)))
    return faults


def run(words: list[str], folder: Path, faults: list[Fault], limit: float) -> Outcome:
    """``dopsd train WORDS`` under ``faults``; ends it after ``limit`` seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "dopsd", "train", *words, f"run.folder={folder}"]
    command.append("--overwrite")
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(-1, "", 0.0)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        stopped: list[psutil.Process] = []
        try:
            _strike_all(process, folder, list(faults), outcome, began + limit, stopped)
            outcome.code = process.wait(timeout=max(1.0, began + limit - time.monotonic()))
        finally:
            _end(process, stopped)
    outcome.output, outcome.seconds = log.read_text(), time.monotonic() - began
    return outcome


def _strike_all(
    process: subprocess.Popen,
    folder: Path,
    faults: list[Fault],
    outcome: Outcome,
    end: float,
    stopped: list[psutil.Process],
) -> None:
    """Faults of one step strike together; those of a later one when the run has gone on. Those
    that hang are added to ``stopped``."""
    struck_at: list[tuple[Fault, float, int]] = []
    while process.poll() is None and time.monotonic() < end and (faults or struck_at):
        highest = _highest(folder)
        now = time.monotonic()
        if struck_at and highest > max(seen for _, _, seen in struck_at):
            outcome.struck += [(fault, now - since) for fault, since, _ in struck_at]
            struck_at.clear()
        together = not struck_at or (faults and faults[0].step == struck_at[0][0].step)
        if faults and together and highest >= faults[0].step:
            time.sleep(faults[0].delay)
            if victim := _strike(process, faults[0]):
                stopped += [victim] * faults[0].hang
                struck_at.append((faults.pop(0), time.monotonic(), _highest(folder)))
                continue
        time.sleep(0.1)
    now = time.monotonic()
    outcome.struck += [(fault, now - since) for fault, since, _ in struck_at]


def _highest(folder: Path) -> int:
    """Steps that the ledger has seen trained at least once."""
    entries = read_lines(str(folder / LEDGER_FILE))
    return max((entry["step"] + 1 for entry in entries if "step" in entry), default=0)


def _strike(process: subprocess.Popen, fault: Fault) -> psutil.Process | None:
    """Hit one process of the role, if there is one; returns it."""
    title = ROLES[fault.role]
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(title):
                found.append(child)
        except psutil.Error:
            continue
    if not found:
        return None
    victim = sorted(found, key=lambda child: child.pid)[fault.step % len(found)]
    try:
        victim.send_signal(signal.SIGSTOP if fault.hang else signal.SIGKILL)
    except psutil.NoSuchProcess:
        return None
    return victim


def _end(process: subprocess.Popen, stopped: list[psutil.Process]) -> None:
    """Nothing of a run may stay behind, ``stopped`` processes least of all: they outlive it."""
    left = list(stopped)
    with contextlib.suppress(psutil.NoSuchProcess):
        left += psutil.Process(process.pid).children(recursive=True)
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
    verdict: LedgerReport | None
    difference: float
    """Largest difference of the final adapters; nan when there is none to compare."""
    planned: Sequence[Fault]

    @property
    def missed(self) -> list[str]:
        """Faults of the schedule that struck nobody: the run ended before their turn."""
        struck = Counter(fault.name for fault, _ in self.disturbed.struck)
        return sorted((Counter(fault.name for fault in self.planned) - struck).elements())

    @property
    def survived(self) -> bool:
        good = self.verdict is not None and self.verdict.agrees
        equal = self.difference == 0.0
        return self.disturbed.code == 0 and good and equal and not self.missed

    def record(self) -> dict[str, Any]:
        """What was injected and what came of it, as plain values."""
        seconds: dict[str, list[float]] = {}
        for fault, lost in self.disturbed.struck:
            seconds.setdefault(fault.name, []).append(lost)
        return {
            "survived": self.survived,
            "exit_code": self.disturbed.code,
            "planned": len(self.planned),
            "struck": len(self.disturbed.struck),
            "missed": self.missed,
            "faults": {
                name: {"times": len(each), "median_seconds": statistics.median(each)}
                for name, each in sorted(seconds.items())
            },
            "samples_lost": self.verdict.lost if self.verdict else None,
            "samples_doubled": self.verdict.doubled if self.verdict else None,
            "ledger_agrees": bool(self.verdict and self.verdict.agrees),
            "adapter_equal": self.difference == 0.0,
            # JSON knows no nan.
            "adapter_difference": None if math.isnan(self.difference) else self.difference,
            "seconds_undisturbed": self.undisturbed.seconds,
            "seconds_disturbed": self.disturbed.seconds,
        }

    def lines(self) -> list[str]:
        """The same as a Markdown table and what was found."""
        record = self.record()
        rows = ["| fault | times | seconds until the next new step (median) |", "|---|---:|---:|"]
        for name, each in record["faults"].items():
            rows.append(f"| {name} | {each['times']} | {each['median_seconds']:.0f} |")
        verdict = self.verdict.lines() if self.verdict else ["no ledger to verify"]
        equal = "yes" if record["adapter_equal"] else f"NO, apart by {self.difference:g}"
        extra = self.disturbed.seconds - self.undisturbed.seconds
        missed = f"; never struck: {', '.join(self.missed)}" if self.missed else ""
        return [
            *rows,
            "",
            *(f"- {line}" for line in verdict),
            f"- adapter equal: {equal}",
            f"- {record['struck']} of {record['planned']} faults struck{missed}",
            f"- {extra:.0f} s longer than undisturbed ({self.undisturbed.seconds:.0f} s); "
            f"exit code {self.disturbed.code}",
        ]

    def write(self, folder: Path) -> None:
        """``chaos.json`` and ``chaos.md`` in ``folder``."""
        (folder / "chaos.json").write_text(json.dumps(self.record(), indent=1) + "\n")
        (folder / "chaos.md").write_text("\n".join(self.lines()) + "\n")


def compare(words: list[str], folder: Path, faults: list[Fault], limit: float) -> Report:
    """Run ``words`` undisturbed (unless those very words were already) and under ``faults``; the
    report is also written into ``folder``."""
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
    report = Report(undisturbed, disturbed, verdict, apart, faults)
    report.write(folder)
    return report
