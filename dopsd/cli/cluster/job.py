"""`dopsd job`: manifests for KubeRay or a script for SLURM, sized by `dopsd plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, quiet, refuse_overrides
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.errors import ConfigError
from dopsd.terminal import say_lines

SBATCH = "sbatch"


def job(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    image: Annotated[
        str, typer.Option(help="Of every node: REGISTRY/NAME:TAG. Not of sbatch.")
    ] = "",
    bucket: Annotated[
        str,
        typer.Option(
            help="s3://BUCKET or s3://BUCKET/FOLDER: runs and shards lie there. Of sbatch also a "
            "folder that all nodes share."
        ),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="rayjob: a run with its cluster; rayjob-library: a library with workers that come "
            "and go; raycluster: a cluster that stays; sbatch: a script for SLURM."
        ),
    ] = "rayjob",
    queue: Annotated[
        str | None,
        typer.Option(help="Of Kueue or Volcano, which start all pods or none; SLURM's partition."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="kueue or volcano: whose the queue is. Default: kueue with --queue."),
    ] = None,
    spot: Annotated[
        bool, typer.Option("--spot", help="Workers on machines that may be taken away.")
    ] = False,
    gpus_per_pod: Annotated[
        int, typer.Option(min=1, max=16, help="GPUs of a worker's pod: those of a node.")
    ] = 4,
    volume: Annotated[
        bool,
        typer.Option(
            "--volume",
            help="Models lie on the claim dopsd-models (filled by hf download); no hub.",
        ),
    ] = False,
) -> None:
    """Print manifests for KubeRay, for `kubectl apply -f -`, or a script for `sbatch`.

    The config goes along. NAME is run.name; for KubeRay, shards that are not on S3 yet are expected
    in shards/NAME (dopsd prepare CONFIG data.shards=s3://BUCKET/shards/NAME).
    """
    pods = {"--image": image, "--scheduler": scheduler, "--spot": spot, "--volume": volume}
    if kind == SBATCH and (given := [option for option, value in pods.items() if value]):
        raise ConfigError(f"{given[0]}: with --kind {SBATCH}, allowed: none (it has no pods)")
    needed = {"--bucket": bucket} if kind == SBATCH else {"--image": image, "--bucket": bucket}
    for option, value in needed.items():
        if not value:
            raise ConfigError(f"{option}: missing")
    decided = {"run.folder": "--bucket", "run.resume": "a job (auto)"}
    refuse_overrides(overrides, decided | {"run.overwrite": "a job (false)"})
    chosen = load_config(config, overrides)
    quiet()
    from dopsd.data.known_concepts import refuse_unknown_concepts

    # Shards on this machine are the job's only where its nodes see the same folder.
    replaced = kind != SBATCH or chosen.data.shards is None
    refuse_unknown_concepts(chosen, anew=replaced, offline=True)
    if kind == SBATCH:
        from dopsd.slurm import BatchJob, script

        say_lines(script(BatchJob(chosen, bucket, queue, gpus_per_pod)))
        return
    from dopsd.kuberay import Job, documents
    from dopsd.kuberay.job import KINDS, in_cluster
    from dopsd.kuberay.text import as_yaml
    from dopsd.library.catalogue.recipe import check_library

    if kind not in KINDS:
        raise ConfigError(f"--kind: {kind!r}, allowed: {', '.join([*KINDS, SBATCH])}")
    asked = Job(chosen, image, bucket, kind, queue, spot, gpus_per_pod, volume, scheduler)
    made = documents(asked)
    if asked.library:
        check_library(in_cluster(asked))
    say_lines(as_yaml(made))
