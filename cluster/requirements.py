"""Print what pyproject.toml depends on, a requirement a line: python requirements.py FILE.

The image installs these before the package, so that a change of code costs no new layer of them.
"""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    print("\n".join(project["dependencies"]))
