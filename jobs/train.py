"""`dopsd train` on a cluster: `ray job submit --working-dir . -- python jobs/train.py`."""

from job import run

run("train")
