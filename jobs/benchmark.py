"""`dopsd benchmark` on a cluster: `ray job submit --working-dir . -- python jobs/benchmark.py`."""

from job import run

if __name__ == "__main__":
    run("benchmark")
