"""`dopsd train` on a cluster: `ray job submit --working-dir . -- python jobs/train.py`.

A job may be submitted again, by a person or because its head was lost: unless the command line says
what is to be done about a run in the folder, that one goes on.
"""

import sys

from job import run

_SAID = ("--resume", "--overwrite", "run.resume=", "run.overwrite=")

if __name__ == "__main__":
    if not any(word.startswith(_SAID) for word in sys.argv[1:]):
        sys.argv.append("--resume-if-there")
    run("train")
