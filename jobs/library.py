"""`dopsd library` on a cluster: `ray job submit --working-dir . -- python jobs/library.py`."""

from job import run

if __name__ == "__main__":
    run("library")
