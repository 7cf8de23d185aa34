"""A run under faults: ``python -m tests.chaos --kills 20``; exit code 1 when it fell.

Trains configs/shapes.yaml twice, undisturbed and under a seeded schedule of killed and hanging
processes, and compares the adapters.
"""

import argparse
import sys
from pathlib import Path

from tests.chaos.harness import ROLES, compare, schedule


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="faults to inject")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--lag", type=int, default=1, help="max_policy_lag")
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES))
    parser.add_argument("--no-hangs", action="store_true", help="kill only")
    parser.add_argument("--config", default="configs/shapes.yaml")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds of each run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    faults = schedule(
        options.kills, options.steps, options.seed, tuple(options.roles), not options.no_hangs
    )
    words = [
        options.config,
        f"learner.steps={options.steps}",
        f"max_policy_lag={options.lag}",
        "checkpoint.every_steps=5",
        f"learner.restarts={options.kills + 5}",
        "learner.restart_backoff_s=0",
        f"inference.max_restarts={options.kills + 5}",
        "timeouts.step=60",
        "preview.samples=0",
        "preflight.mode=off",
        *options.overrides,
    ]
    folder = options.folder.absolute()
    report = compare(words, folder, faults, options.limit)
    print("\n".join(report.lines()))
    print(f"also in {folder}: chaos.json, chaos.md")
    if report.disturbed.code:
        print(report.disturbed.output[-3000:])
    return 0 if report.survived else 1


if __name__ == "__main__":
    sys.exit(main())
