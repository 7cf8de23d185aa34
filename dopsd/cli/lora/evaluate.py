"""``dopsd evaluate``: arguments in, the table onto the screen."""

from __future__ import annotations

from typing import Annotated

import typer

from dopsd.cli.options import COUNT_MOST, SHARE_MOST, STEPS_MOST, Partial, Pixels, TakeOver, quiet
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.terminal import say, say_lines


def evaluate(
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]LoRA file, run folder, transformer folder or LIBRARY:CONCEPT, local or "
            "s3://; may be repeated."
        ),
    ] = None,
    stack: Annotated[bool, typer.Option(help="Also draw with all LoRAs loaded together.")] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help=".txt, .jsonl, a folder of prepared shards, or shapes:CONCEPT; may be repeated. "
            "Default for base `shapes`: shapes:bars."
        ),
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help=".txt of prompts about what the base knows: retention.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME[=MODEL], MODEL a folder or hub id; may be repeated."),
    ] = None,
    base: Annotated[str, typer.Option(help="Pipeline folder, hub id or `shapes`.")] = "shapes",
    family: Annotated[str, typer.Option(help="Model family.")] = "z_image",
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, max=STEPS_MOST, help="Sampler steps; may be repeated. Default: 4."),
    ] = None,
    steps_kept: Annotated[
        bool,
        typer.Option(
            "--steps-kept", help="Draw with 2, 4, 8 and 30 steps: is few-step ability kept?"
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Pictures per prompt: seeds 0, 1, ...")
    ] = 1,
    count: Annotated[
        int,
        typer.Option(min=1, max=COUNT_MOST, help="Prompts of a shapes: concept, and of its prior."),
    ] = 24,
    prompt_vlm: Annotated[
        str | None, typer.Option(help="VLM that writes the prompts of prepared shards.")
    ] = None,
    out: Annotated[
        str, typer.Option(help="Output folder; the same one is resumed.")
    ] = "evaluation",
    width: Pixels = None,
    height: Pixels = None,
    batch: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Pictures of one call.")] = 8,
    workers: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Actors that draw and score.")
    ] = 1,
    cpus: Annotated[float, typer.Option(min=0, max=SHARE_MOST, help="CPUs of each worker.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(min=0, max=SHARE_MOST, help="GPUs of each worker, if any.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    partial_lora: Partial = False,
    take_over: TakeOver = False,
) -> None:
    """Draw with base and trained models from equal noise, and score: a table with intervals."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}, allowed: auto, cpu, cuda")
    if not prompts and base != "shapes":
        raise ConfigError("--prompts: missing, allowed: a file, or a folder of prepared shards")
    quiet()
    from dopsd import api
    from dopsd.evaluation.folder import PAGE, RESULTS, TABLE
    from dopsd.evaluation.steps_kept import STEPS
    from dopsd.report.page import EVALUATION, write_report
    from dopsd.run_folder.files import RunFolder

    results = api.evaluate(
        out,
        loras=lora or [],
        stack=stack,
        prompts=prompts or [],
        prior=prior,
        metrics=metric or [],
        base=base,
        family=family,
        revision=revision,
        dtype=dtype,
        steps=sorted({*(steps or []), *STEPS}) if steps_kept else steps or [4],
        seeds=seeds,
        count=count,
        prompt_vlm=prompt_vlm,
        width=width,
        height=height,
        batch=batch,
        workers=workers,
        cpus=cpus,
        gpus=gpus,
        device=device,  # type: ignore[arg-type]
        partial_lora=partial_lora,
        take_over=take_over,
        mark="--",
    )
    say_lines(results.markdown())
    say(f"Table: {storage.join(out, TABLE)}")
    say(f"Page: {storage.join(out, PAGE)}")
    run_folder, _, name = out.rstrip("/").rpartition("/")
    if f"{name}/{RESULTS}" == EVALUATION and RunFolder(run_folder or ".").exists:
        say(f"Run page: {write_report(run_folder or '.')}")
