"""`dopsd evaluate` on a cluster: `ray job submit --working-dir . -- python jobs/evaluate.py`."""

from job import run

run("evaluate")
