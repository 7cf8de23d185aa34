"""The schedule of faults: seeded, spread, every role in turn."""

from tests.chaos.harness import ROLES, schedule


def test_a_schedule_is_seeded_and_spread_over_steps_and_roles():
    faults = schedule(20, 60, seed=3)
    assert faults == schedule(20, 60, seed=3) != schedule(20, 60, seed=4)
    steps = [fault.step for fault in faults]
    assert steps == sorted(steps) and steps[0] >= 1 and 50 < steps[-1] < 60
    assert {fault.role for fault in faults[:4]} == set(ROLES)
    assert all(fault.role in ("inference", "learner") for fault in faults if fault.hang)
    assert not any(fault.hang for fault in schedule(20, 60, seed=3, hangs=False))
