"""`dopsd prepare` on a cluster: `ray job submit --working-dir . -- python jobs/prepare.py`."""

from job import run

run("prepare")
