"""`dopsd prepare` on a cluster: `ray job submit --working-dir . -- python jobs/prepare.py`."""

from job import run

if __name__ == "__main__":
    run("prepare")
