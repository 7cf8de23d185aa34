"""`dopsd lora`: what a LoRA file is."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import quiet
from dopsd.errors import ConfigError, ModelError
from dopsd.terminal import say

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """What a LoRA file is."""


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A LoRA, local or s3://.")],
    base: Annotated[str, typer.Option(help="Pipeline folder, hub id or `shapes`.")] = "shapes",
    family: Annotated[str, typer.Option(help="Model family.")] = "z_image",
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
) -> None:
    """Say how many of FILE's modules a base takes, and who reads its spelling.

    From config files alone: no weights of the base are read. Exit code 1 unless all fit.
    """
    quiet()
    import diffusers

    from dopsd.files import storage
    from dopsd.models import FAMILIES
    from dopsd.models.lora.factors import TITLES
    from dopsd.models.lora.fit import has_alpha, lora_fit, spelling

    if family not in FAMILIES:
        raise ConfigError(f"--family: {family!r}, allowed: {', '.join(FAMILIES)}")
    if not storage.exists(file):
        raise ModelError(f"{file}: no such LoRA file")
    payload = storage.read_bytes(file)
    model = FAMILIES[family](base, revision, "--base")
    pipeline = getattr(diffusers, model.pipeline_class)
    fit = lora_fit(pipeline, model.skeleton(), file, payload)
    alpha = "alphas stand beside the weights" if has_alpha(payload) else "alpha is folded in"
    ranks = ", ".join(map(str, fit.ranks)) or "none"
    kind = "" if fit.kind == "lora" else f"a {TITLES[fit.kind]}, "
    say(f"{file}: {kind}{fit.total} modules of rank {ranks}; keys are {spelling(payload)}; {alpha}")
    reads = f"diffusers {diffusers.__version__}, and dopsd with it"
    if fit.kind not in model.diffusers_kinds:
        reads = f"dopsd (load_lora_weights of {family} reads no {TITLES[fit.kind]})"
    say(f"  {reads}: {fit.sentence()}")
    fit.check(file, partial=False)
