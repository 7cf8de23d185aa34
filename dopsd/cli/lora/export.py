"""`dopsd export`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import quiet
from dopsd.errors import ConfigError
from dopsd.terminal import say


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run folder, LIBRARY:CONCEPT or LoRA file, local or s3://."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="File (.safetensors), of `peft` a folder; never replaced.")
    ],
    format: Annotated[
        str, typer.Option(help="Whose keys: diffusers, peft, kohya or comfyui.")
    ] = "diffusers",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    which: Annotated[
        str, typer.Option(help="student, teacher, or step-N of those that are kept.")
    ] = "student",
) -> None:
    """Write a trained LoRA as another program reads it, at equal strength."""
    quiet()
    from dopsd.driver.export.formats import DTYPES, export_lora
    from dopsd.library.lora import concept_lora
    from dopsd.models.lora.formats import FORMATS

    for option, value, allowed in (("format", format, FORMATS), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ConfigError(f"--{option}: {value!r}, allowed: {', '.join(allowed)}")
    for path in export_lora(concept_lora(run), format, dtype, which, out):  # type: ignore[arg-type]
        say(path)
