"""`dopsd preflight` on a cluster: `ray job submit --working-dir . -- python jobs/preflight.py`."""

from job import run

run("preflight")
