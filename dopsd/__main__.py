"""``python -m dopsd``: the command line."""

import sys

from dopsd.cli.main import main

sys.exit(main())
