"""What is to be typed once a recipe is written."""

from __future__ import annotations

import shlex

from dopsd.config import RunConfig
from dopsd.driver.own_recipe.answers import Answers
from dopsd.plan import Plan

_NODE = 8
"""GPUs of a machine at most."""


def next_commands(answers: Answers, config: RunConfig, file: str) -> list[str]:
    """In order. IMAGE and s3://BUCKET are the cluster's, which nobody else knows."""
    cluster, cached = answers.cluster, config.data.context_cache == "require"
    if cluster.where == "kuberay":
        shards = f"data.shards=s3://BUCKET/shards/{config.run.name}"
        pods = ["--gpus-per-pod", str(min(cluster.gpus, _NODE))]
        job = ["dopsd", "job", file, "--image", "IMAGE", "--bucket", "s3://BUCKET", *pods]
        return [_prepare(file, cached, shards), f"{shlex.join(job)} | kubectl apply -f -"]
    quantized = {config.model.quantize, config.encoder.quantize} != {"none"}
    commands = ["pip install 'dopsd[quantize]'"] if quantized else []
    joined = "RAY_ADDRESS=auto " if cluster.where == "ray" else ""
    commands.append(shlex.join(["dopsd", "doctor", file]))
    if cached:
        commands.append(joined + _prepare(file, cached))
    return [*commands, joined + shlex.join(["dopsd", "train", file])]


def remarks(answers: Answers, plan: Plan) -> list[str]:
    """How long it takes, and what has to be so before the commands work."""
    lines = []
    if answers.card:
        steps, hours = plan.config.learner.steps, plan.shipped.seconds / 3600
        lines.append(f"{steps} steps (learner.steps) take about {steps * hours:.1f} hours of that")
    if answers.cluster.where == "ray":
        lines.append(
            "on several machines data.source and run.folder lie on a shared mount or s3://"
        )
    if answers.cluster.where == "kuberay":
        lines.append("put your image for IMAGE and your bucket for s3://BUCKET")
    return lines


def _prepare(file: str, cached: bool, *overrides: str) -> str:
    words = ["dopsd", "prepare", file, *overrides]
    return shlex.join([*words, "--cache-contexts"] if cached else words)
