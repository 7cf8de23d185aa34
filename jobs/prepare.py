"""`dopsd prepare` under Ray Jobs: ``ray job submit --working-dir . -- python jobs/prepare.py``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("dopsd") is None:  # a cluster whose image does not carry the package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dopsd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
