"""`dopsd evaluate` on a cluster: `ray job submit --working-dir . -- python jobs/evaluate.py`."""

from job import run

if __name__ == "__main__":
    run("evaluate")
