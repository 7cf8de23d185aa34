"""``dopsd evaluate``: arguments into a spec, the table onto the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dopsd import storage
from dopsd.cli.options import COUNT_MOST, SHARE_MOST, STEPS_MOST, Pixels, TakeOver, quiet
from dopsd.errors import ConfigError
from dopsd.terminal import say, say_lines

if TYPE_CHECKING:
    from dopsd.config import Device
    from dopsd.evaluation.prompts import EvalPrompt


def evaluate(
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]LoRA file, run folder or transformer folder, local or s3://; may be "
            "repeated."
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
    take_over: TakeOver = False,
) -> None:
    """Draw with base and trained models from equal noise, and score: a table with intervals."""
    quiet()
    from dopsd.contexts.lengths import cut_prompts
    from dopsd.driver.progress import Progress, Report
    from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
    from dopsd.evaluation.folder import PAGE, RESULTS, TABLE, check_out
    from dopsd.evaluation.prompts import PRIOR, read_prompts
    from dopsd.evaluation.run import evaluate as run
    from dopsd.evaluation.spec import EvaluateSpec, MetricChoice, resolve_models
    from dopsd.evaluation.steps_kept import STEPS
    from dopsd.lease import claimed
    from dopsd.models import FAMILIES
    from dopsd.report.page import EVALUATION, write_report
    from dopsd.run_folder.files import RunFolder
    from dopsd.signals import interruptible

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}, allowed: auto, cpu, cuda")
    models = tuple(map(as_trained, evaluated_models(lora or [], stack)))
    named = (choice.partition("=") for choice in metric or [])
    metrics = tuple(MetricChoice(name, model or None) for name, _, model in named)
    if not prompts and base != "shapes":
        raise ConfigError("--prompts: missing, allowed: a file, or a folder of prepared shards")
    spec = EvaluateSpec(
        out=out,
        prompts=(),
        models=models,
        metrics=metrics,
        base=base,
        family=family,
        revision=revision,
        dtype=dtype,
        height=height,
        width=width,
        steps=tuple(sorted({*(steps or []), *STEPS})) if steps_kept else tuple(steps or [4]),
        seeds=tuple(range(seeds)),
        batch=batch,
        device=device,  # type: ignore[arg-type]
        workers=workers,
        cpus=cpus,
        gpus=gpus,
    )
    resolve_models(spec)  # before a VLM writes prompts
    check_out(out)
    stays = f"what is drawn and scored stays in {out}; the same command goes on"
    with (
        interruptible(stays),
        claimed(out, "--out", take_over=take_over, tell=say),
        Progress() as progress,
    ):
        asked = [
            prompt
            for source in prompts or ["shapes:bars"]
            for prompt in _prompts(
                source, count, out, prompt_vlm, partial(progress.show, "prompts"), spec.device
            )
        ]
        if prior is not None:
            asked += [replace(p, group=PRIOR, prior=True) for p in read_prompts(prior)]
        # Two concepts of the shapes world bring the same prior prompts.
        unique = {(prompt.text, prompt.group): prompt for prompt in asked}
        texts = {prompt.text for prompt in unique.values()}
        if lines := cut_prompts(FAMILIES[family](base, revision, "--base"), sorted(texts)):
            progress.show("prompts", Report(lines))
        results = run(replace(spec, prompts=tuple(unique.values())), progress.show)
    say_lines(results.markdown())
    say(f"Table: {storage.join(out, TABLE)}")
    say(f"Page: {storage.join(out, PAGE)}")
    run_folder, _, name = out.rstrip("/").rpartition("/")
    if f"{name}/{RESULTS}" == EVALUATION and RunFolder(run_folder or ".").exists:
        say(f"Run page: {write_report(run_folder or '.')}")


def _prompts(
    source: str,
    count: int,
    out: str,
    vlm: str | None,
    tell: Callable[[str], None],
    device: Device,
) -> tuple[EvalPrompt, ...]:
    from dopsd.data.manifest import has_manifest
    from dopsd.evaluation.prompts import read_prompts, shapes_prompts

    if source.startswith("shapes:"):
        return shapes_prompts(source.removeprefix("shapes:"), count)
    if has_manifest(source):
        from dopsd.evaluation.dataset_prompts import dataset_prompts

        return dataset_prompts(source, out, vlm, tell, device)
    return read_prompts(source)
