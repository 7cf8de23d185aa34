"""The schedule of faults: seeded, spread, every kind in turn; and what is said of its outcome."""

import json
import math

from dopsd.driver.verify import LedgerReport
from tests.chaos.harness import ROLES, Fault, Outcome, Report, schedule


def test_a_schedule_is_seeded_and_spread_over_steps_and_roles():
    faults = schedule(20, 60, seed=3)
    assert faults == schedule(20, 60, seed=3) != schedule(20, 60, seed=4)
    steps = [fault.step for fault in faults]
    assert steps == sorted(steps) and steps[0] >= 1 and 50 < steps[-1] < 60
    assert not any(fault.hang for fault in schedule(20, 60, seed=3, hangs=False))


def test_twelve_faults_are_of_every_kind():
    for seed in range(5):
        faults = schedule(12, 60, seed)
        assert {fault.role for fault in faults if not fault.hang} == set(ROLES)
        assert {fault.role for fault in faults if fault.hang} == {"rollout", "learner"}


def test_a_fault_that_struck_nobody_is_told_and_not_survived(tmp_path):
    killed, hung = Fault(1, "encoder", False, 0.0), Fault(9, "learner", True, 0.0)
    calm, verdict = Outcome(0, "", 10.0), LedgerReport(steps=5, attempts=1, again=0)
    wild = Outcome(0, "", 40.0, [(killed, 3.0), (killed, 4.0), (killed, 20.0)])
    assert Report(calm, wild, verdict, 0.0, [killed] * 3).survived
    report = Report(calm, wild, verdict, 0.0, [killed, killed, killed, hung])
    assert not report.survived and report.missed == ["learner hangs"]
    report.write(tmp_path)
    record = json.loads((tmp_path / "chaos.json").read_text())
    assert record["faults"] == {"encoder killed": {"times": 3, "median_seconds": 4.0}}
    assert (record["samples_lost"], record["samples_doubled"]) == (0, 0)
    assert "- 3 of 4 faults struck; never struck: learner hangs" in report.lines()
    again = Report(calm, wild, verdict, 0.0, [killed] * 4)
    assert not again.survived and again.missed == ["encoder killed"]
    assert Report(calm, wild, None, math.nan, []).record()["adapter_difference"] is None
