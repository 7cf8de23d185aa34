"""`dopsd generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import SEED_MOST, STEPS_MOST, Partial, Pixels, TakeOver, quiet
from dopsd.terminal import say


def generate(
    prompts: Annotated[list[str], typer.Argument(help="One picture per prompt.")],
    base: Annotated[
        str | None,
        typer.Option(help="Pipeline folder, hub id or `shapes`; default: the LoRA's, or `shapes`."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Model family; default: the LoRA's, or z_image.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LORA[@WEIGHT]",
            help="LoRA file, run folder or LIBRARY:CONCEPT, local or s3:// (repeatable).",
        ),
    ] = None,
    modules: Annotated[
        str | None, typer.Option(help="File of modules trained beside the LoRA.")
    ] = None,
    transformer: Annotated[
        str | None,
        typer.Option(help="Folder of a transformer in place of the base's, local or s3://."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Reference picture (repeatable, in order), shown with every prompt."),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Folder of the pictures; those drawn there before are replaced.")
    ] = "generated",
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=STEPS_MOST, help="Sampler steps; default: the LoRA's, or 4."),
    ] = None,
    width: Pixels = None,
    height: Pixels = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED_MOST, help="Picture i uses seed + i.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; default: bfloat16 on a GPU.")
    ] = None,
    partial_lora: Partial = False,
    take_over: TakeOver = False,
) -> None:
    """Draw pictures with the base, or with what was trained of it."""
    quiet()
    from dopsd.api.drawing import drawing
    from dopsd.contexts.lengths import cut_prompts
    from dopsd.data.pictures.drawn import drawn_png
    from dopsd.evaluation.generate import check_out
    from dopsd.files import storage
    from dopsd.ownership.lease import claimed
    from dopsd.signals import interruptible

    asked = drawing(
        lora or [],
        base=base,
        family=family,
        revision=revision,
        modules=modules,
        transformer=transformer,
        steps=steps,
        dtype=dtype,
        partial=partial_lora,
        mark="--",
    )
    storage.check_writable("--out", out)
    paths = [storage.join(out, f"{number:03d}.png") for number in range(len(prompts))]
    check_out(out, paths)
    for line in cut_prompts(asked.family, prompts):
        say(line)
    pictures = asked.pictures(prompts, reference or [], (height, width), seed)
    drawn = 0
    with (
        interruptible(lambda: f"{drawn} of {len(prompts)} pictures are in {out}"),
        claimed(out, "--out", take_over=take_over, tell=say),
    ):
        check_out(out, paths)
        for picture in pictures:
            words = {"prompt": prompts[drawn], "seed": str(seed + drawn), "steps": str(asked.steps)}
            words |= {"lora": " ".join(map(str, asked.loras))} if asked.loras else {}
            storage.write_bytes(paths[drawn], drawn_png(picture, words))
            say(f"{paths[drawn]}  {prompts[drawn]}")
            drawn += 1
