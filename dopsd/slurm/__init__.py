"""A run on SLURM: an sbatch script, sized as pods are."""

from dopsd.slurm.script import BatchJob, script

__all__ = ["BatchJob", "script"]
