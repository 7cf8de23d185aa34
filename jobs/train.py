"""`dopsd train` on a cluster: `ray job submit --working-dir . -- python jobs/train.py`."""

from job import run

if __name__ == "__main__":
    run("train")
