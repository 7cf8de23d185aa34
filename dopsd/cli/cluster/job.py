"""`dopsd job`: manifests for KubeRay, sized by `dopsd plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, quiet, refuse_overrides
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.errors import ConfigError
from dopsd.terminal import say_lines


def job(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="Of every node: REGISTRY/NAME:TAG.")] = "",
    bucket: Annotated[
        str,
        typer.Option(help="s3://BUCKET or s3://BUCKET/FOLDER: runs and shards lie there."),
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="rayjob: a run with its cluster; rayjob-library: a library with workers that come "
            "and go; raycluster: a cluster that stays."
        ),
    ] = "rayjob",
    queue: Annotated[
        str | None, typer.Option(help="Queue of Kueue, which starts all pods or none.")
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
    """Print manifests for KubeRay: for `kubectl apply -f -`.

    The config goes along as a ConfigMap. NAME is run.name; shards that are not on S3 yet are
    expected in shards/NAME (dopsd prepare CONFIG data.shards=s3://BUCKET/shards/NAME).
    """
    for option, value in (("--image", image), ("--bucket", bucket)):
        if not value:
            raise ConfigError(f"{option}: missing")
    decided = {"run.folder": "--bucket", "run.resume": "a job (auto)"}
    refuse_overrides(overrides, decided | {"run.overwrite": "a job (false)"})
    chosen = load_config(config, overrides)
    quiet()
    from dopsd.data.known_concepts import refuse_unknown_concepts
    from dopsd.kuberay import Job, documents
    from dopsd.kuberay.job import KINDS, in_cluster
    from dopsd.kuberay.text import as_yaml
    from dopsd.library.recipe import check_library

    if kind not in KINDS:
        raise ConfigError(f"--kind: {kind!r}, allowed: {', '.join(KINDS)}")
    refuse_unknown_concepts(chosen)
    asked = Job(chosen, image, bucket, kind, queue, spot, gpus_per_pod, volume)
    made = documents(asked)
    if asked.library:
        check_library(in_cluster(asked))
    say_lines(as_yaml(made))
