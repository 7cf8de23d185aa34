"""`dopsd verify`: does the ledger say what the plan says?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow.parquet as pq

from dopsd.config import RunConfig
from dopsd.config.data import PRIOR
from dopsd.data.manifest import has_manifest, load_manifest
from dopsd.data.planning.join import joined
from dopsd.data.planning.plan import Plan, RowRef
from dopsd.data.run_data import plan_of
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.policy.versions import policy_version, teacher_version
from dopsd.run_folder.files import LEDGER_FILE, RunFolder
from dopsd.run_folder.jsonl import read_with_damage
from dopsd.run_folder.ledger import effective, is_ledger_line

_SHOWN = 10


@dataclass
class LedgerReport:
    """What plan and ledger say of a run."""

    steps: int
    """Steps behind the final weights."""
    attempts: int
    again: int
    """Steps that were trained again after a restart; the earlier ones were replaced."""
    samples: int = 0
    lost: int = 0
    """Samples of the plan that are in no step where they belong."""
    doubled: int = 0
    """Samples that a step holds beyond the plan."""
    skipped: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not (self.lost or self.doubled or self.problems)

    def lines(self) -> list[str]:
        """For people."""
        shown = self.problems[:_SHOWN]
        if more := len(self.problems) - len(shown):
            shown.append(f"and {more} more")
        skipped = f", {len(self.skipped)} of them skipped as not finite" if self.skipped else ""
        return [
            f"{self.steps} steps{skipped}, {self.samples} samples; attempts: {self.attempts}, "
            f"steps trained again after restarts: {self.again}",
            f"samples lost: {self.lost}, doubled: {self.doubled}",
            *shown,
            "plan and ledger agree" if self.agrees else "plan and ledger do NOT agree",
        ]


def verify_run(folder: str) -> LedgerReport:
    """Raises DataError when ``folder`` holds no ledger, or its shards are gone or others."""
    run = RunFolder(folder)
    path = run.file(LEDGER_FILE)
    ledger = read_with_damage(path, is_ledger_line)
    entries = ledger.entries
    if not entries:
        damage = f"all of it is damaged: {ledger.told()}" if ledger.damage else "missing or empty"
        raise DataError(f"{path}: {damage}; allowed: the ledger of a run")
    config = run.config()
    shards = run.shards(config)
    key = next((entry["plan"] for entry in reversed(entries) if "start" in entry), "")
    if not key and ledger.damage:
        raise DataError(
            f"{path}: {ledger.told()}: no line is left that names the plan; remedy: put the lines "
            "back from a copy"
        )
    plan = _plan(config, shards, key)
    ids = _sample_ids(shards)

    trained, twice = effective(entries)
    lines = [entry for entry in entries if "start" not in entry]
    report = LedgerReport(
        steps=len(trained),
        attempts=max(entry["attempt"] for entry in entries),
        again=len(lines) - len(trained) - len(twice),
    )
    report.problems += [storage.join(folder, line) for line in ledger.damage]
    for step in twice:
        report.problems.append(f"step {step}: trained twice in one attempt")
        report.doubled += plan.step(step).samples
    for step in range(max(trained, default=-1) + 1):
        batches = [[ids(ref) for ref in batch.rows] for batch in plan.step(step).micro_batches]
        _compare(report, config, step, batches, trained.get(step))
    if run.is_finished:
        missing = range(max(trained, default=-1) + 1, config.learner.steps)
        report.problems += [f"step {step}: not in the ledger" for step in missing]
        report.lost += sum(plan.step(step).samples for step in missing)
    aside = [
        name for name in storage.names(folder) if name.startswith(LEDGER_FILE + storage.SET_ASIDE)
    ]
    if ledger.damage or (report.lost and aside):
        there = f", as it was it is {', '.join(sorted(aside))}" if aside else ""
        report.problems.insert(
            0,
            f"{path}: damaged{there}; weights and checkpoints do not depend on it. Remedy: put the "
            "lines back from a copy",
        )
    return report


def _plan(config: RunConfig, shards: str, key: str) -> Plan:
    """The plan with that key, over the shards or over them and samples of the base beside them."""
    manifest = load_manifest(shards)
    plans = [plan_of(config, manifest)]
    for name in sorted(storage.names(shards)):
        folder = storage.join(shards, name)
        if name.startswith(f"{PRIOR}-") and has_manifest(folder):
            plans.append(plan_of(config, joined(manifest, load_manifest(folder), name)))
    trained = next((plan for plan in plans if plan.key == key), None)
    if trained is None:
        raise DataError(f"{shards}: not what was trained on: its plan is another one")
    return trained


def _compare(
    report: LedgerReport,
    config: RunConfig,
    step: int,
    planned: list[list[str]],
    line: dict[str, Any] | None,
) -> None:
    expected = Counter(name for batch in planned for name in batch)
    report.samples += expected.total()
    if line is None:
        report.lost += expected.total()
        report.problems.append(f"step {step}: not in the ledger")
        return
    actual = Counter(name for batch in line["micro_batches"] for name in batch)
    missing, extra = expected - actual, actual - expected
    report.lost += missing.total()
    report.doubled += extra.total()
    if missing or extra:
        report.problems.append(f"step {step}: missing {sorted(missing)}, extra {sorted(extra)}")
    elif line["micro_batches"] != planned:
        report.problems.append(f"step {step}: its micro-batches are cut otherwise")
    if line.get("skipped"):
        report.skipped.append(step)
    version = policy_version(step, config.max_policy_lag)
    teacher = teacher_version(version, config.method.teacher_sync_every)
    for key, expected_version in (("policy_version", version), ("teacher_version", teacher)):
        if line[key] != expected_version:
            report.problems.append(f"step {step}: {key} {line[key]}, planned {expected_version}")


def _sample_ids(shards: str) -> Callable[[RowRef], str]:
    """Ids by row, without the pictures beside them."""

    @lru_cache(maxsize=256)
    def read(file: str, row_group: int) -> list[str]:
        path = storage.join(shards, file)
        with storage.open_input(path) as source, pq.ParquetFile(source) as parquet:
            names: list[str] = parquet.read_row_group(row_group, ["sample_id"])[0].to_pylist()
        return names

    return lambda ref: read(ref.file, ref.row_group)[ref.row]
