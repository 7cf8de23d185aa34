"""``dopsd preflight``: can the teacher draw the concept?"""

from __future__ import annotations

import shlex

from dopsd.cli.options import ConfigPath, Overrides, TakeOver, quiet
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.terminal import say


def preflight(
    config: ConfigPath = DEFAULT, overrides: Overrides = None, take_over: TakeOver = False
) -> None:
    """Draw base-as-student and base-as-teacher beside the targets, and judge the teacher.

    Writes `preflight/` in the run folder. With preflight.mode=strict a teacher that was not shown
    to be closer to the targets than the student ends in exit code 1.
    """
    run = load_config(config, overrides)
    quiet()
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.driver.preflight import preflight as check
    from dopsd.driver.preflight import sample_lines

    with Progress() as progress:
        result = check(run, progress.show, take_over)
    for line in sample_lines(result):
        say(line)
    if result.verdict.can_teach:
        command = shlex.join(["dopsd", "train", config, *(overrides or [])])
        say(f"Next: {command}")
