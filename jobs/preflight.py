"""`dopsd preflight` on a cluster: `ray job submit --working-dir . -- python jobs/preflight.py`."""

from job import run

if __name__ == "__main__":
    run("preflight")
