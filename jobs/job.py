"""What every job script does: run a `dopsd` command from the shipped working directory."""

import importlib.util
import sys
from pathlib import Path


def run(command: str) -> None:
    """`dopsd COMMAND` with the script's arguments; exits with its code."""
    if importlib.util.find_spec("dopsd") is None:  # an image that does not carry the package
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from dopsd.cli.main import main

    sys.exit(main([command, *sys.argv[1:]]))
