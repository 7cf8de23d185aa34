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
    import torch

    from dopsd import storage
    from dopsd.contexts.lengths import cut_prompts
    from dopsd.data.drawn import drawn_png
    from dopsd.errors import ConfigError
    from dopsd.evaluation.drawn_with import Said, WeightedLora, said_by
    from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
    from dopsd.evaluation.generate import check_out, read_reference
    from dopsd.evaluation.generate import generate as draw
    from dopsd.lease import claimed
    from dopsd.library.lora import concept_lora
    from dopsd.models import FAMILIES
    from dopsd.models.base import DTYPES
    from dopsd.ray_cluster.process import use_device
    from dopsd.signals import interruptible

    loras = []
    for given in map(WeightedLora.parse, lora or []):
        path = concept_lora(given.path)
        if path.endswith(".safetensors"):
            loras.append(given.at(path))
            continue
        (run,) = map(as_trained, evaluated_models([path]))
        loras += [given.at(own) for own in run.loras]
        if lora and len(lora) > 1 and (run.modules or run.transformer):
            raise ConfigError(f"--lora: {path} is more than a LoRA, allowed: it alone")
        modules, transformer = modules or run.modules, transformer or run.transformer
    said = Said() if base and family else said_by(loras)
    key = "--base" if base or not said.base else f"--lora {loras[0].path}: its base"
    base, family = base or said.base or "shapes", family or said.family or "z_image"
    steps = steps or said.steps or 4
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    for option, value, allowed in (("family", family, FAMILIES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ConfigError(f"--{option}: {value!r}, allowed: {', '.join(allowed)}")
    storage.check_writable("--out", out)
    paths = [storage.join(out, f"{number:03d}.png") for number in range(len(prompts))]
    check_out(out, paths)
    model = FAMILIES[family](base, revision, key)
    for line in cut_prompts(model, prompts):
        say(line)
    side = 32 if base == "shapes" else 1024
    use_device(device)
    pictures = draw(
        model,
        prompts,
        loras,
        steps,
        height or side,
        width or side,
        seed,
        dtype,
        device,
        [read_reference(path) for path in reference or []],
        modules,
        transformer,
        partial_lora,
    )
    drawn = 0
    with (
        interruptible(lambda: f"{drawn} of {len(prompts)} pictures are in {out}"),
        claimed(out, "--out", take_over=take_over, tell=say),
    ):
        check_out(out, paths)
        for picture in pictures:
            words = {"prompt": prompts[drawn], "seed": str(seed + drawn), "steps": str(steps)}
            words |= {"lora": " ".join(map(str, loras))} if loras else {}
            storage.write_bytes(paths[drawn], drawn_png(picture, words))
            say(f"{paths[drawn]}  {prompts[drawn]}")
            drawn += 1
