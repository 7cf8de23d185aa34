"""``dopsd`` and ``python -m dopsd``: the command line as a process of its own."""

from __future__ import annotations

import sys

from dopsd.errors import InterruptedRun
from dopsd.signals import handled, interruptible


def main() -> int:
    """Signals are handled before the command line is imported, which takes a second or two."""
    with handled(own_process=True):
        try:
            with interruptible("the same command begins again"):
                from dopsd.cli.main import main as command_line
        except InterruptedRun as error:
            print(f"dopsd: {error}", file=sys.stderr)
            return error.exit_code
        return command_line()


if __name__ == "__main__":
    sys.exit(main())
