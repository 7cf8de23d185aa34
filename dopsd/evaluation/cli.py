"""``dopsd evaluate``: arguments into a spec, the table onto the screen."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dopsd import storage
from dopsd.cli_options import quiet
from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from dopsd.evaluation.prompts import EvalPrompt
    from dopsd.evaluation.spec import Candidate, MetricChoice

_LORA_FILE, _TRANSFORMER = "lora.safetensors", "transformer"
_MODULES = {
    _LORA_FILE: "modules.safetensors",
    "teacher_lora.safetensors": "teacher_modules.safetensors",
}
"""What a run leaves beside a LoRA when it trained more."""


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
        list[int] | None, typer.Option(help="Sampler steps; may be repeated. Default: 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt: seeds 0, 1, ...")] = 1,
    count: Annotated[
        int, typer.Option(min=1, help="Prompts of a shapes: concept, and of its prior.")
    ] = 24,
    prompt_vlm: Annotated[
        str | None, typer.Option(help="VLM that writes the prompts of prepared shards.")
    ] = None,
    out: Annotated[str, typer.Option(help="Output folder; the same one goes on.")] = "evaluation",
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; default by base.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; default by base.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures of one call.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Actors that draw and score.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of each worker.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker, if any.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Draw with base and trained models from equal noise, and score: a table with intervals."""
    quiet()
    from dopsd.evaluation.spec import EvaluateSpec
    from dopsd.runtime.evaluate import TABLE
    from dopsd.runtime.evaluate import evaluate as run
    from dopsd.runtime.progress import Progress

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}, allowed: auto, cpu, cuda")
    models = tuple(map(_as_trained, _models(lora or [], stack)))
    metrics = tuple(_metric(each) for each in metric or [])
    if not prompts and base != "shapes":
        raise ConfigError("--prompts: missing, allowed: a file, or a folder of prepared shards")
    console = Console()
    with Progress(console) as progress:
        found = [
            each
            for source in prompts or ["shapes:bars"]
            for each in _prompts(
                source, count, out, prompt_vlm, lambda s: progress.show("prompts", s)
            )
        ]
        found += _prior(prior)
        spec = EvaluateSpec(
            out=out,
            # Two concepts of the shapes world bring the same prior prompts.
            prompts=tuple({(each.text, each.group): each for each in found}.values()),
            models=models,
            metrics=metrics,
            base=base,
            family=family,
            revision=revision,
            dtype=dtype,
            height=height,
            width=width,
            steps=tuple(steps or [4]),
            seeds=tuple(range(seeds)),
            batch=batch,
            device=device,  # type: ignore[arg-type]
            workers=workers,
            cpus=cpus,
            gpus=gpus,
        )
        results = run(spec, progress.show)
    console.print(results.markdown(), highlight=False, soft_wrap=True, markup=False)
    console.print(f"Table: {storage.join(out, TABLE)}", highlight=False, soft_wrap=True)


def _models(loras: list[str], stack: bool) -> tuple[Candidate, ...]:
    from dopsd.evaluation.spec import Candidate

    found = []
    for each in loras:
        name, equals, path = each.partition("=")
        if not equals or "/" in name or ":" in name:  # the "=", if any, is the path's own
            name, path = "", each
        path = path.rstrip("/")
        if not path.endswith(".safetensors"):
            path = storage.join(path, _LORA_FILE)
        stem = posixpath.splitext(posixpath.basename(path))[0]
        folder = posixpath.basename(posixpath.dirname(path))
        found.append(Candidate(name or (folder if stem == "lora" and folder else stem), (path,)))
    if stack:
        if len(found) < 2:
            raise ConfigError(f"--stack: {len(found)} LoRAs, allowed: two or more")
        names, files = "+".join(each.name for each in found), [each.loras[0] for each in found]
        found.append(Candidate(names, tuple(files)))
    return tuple(found)


def _as_trained(model: Candidate) -> Candidate:
    """The model with what its run trained beside the LoRA, or in place of one."""
    from dataclasses import replace

    from dopsd.evaluation.whole_weights import is_transformer

    alone = len(model.loras) == 1
    for path in model.loras:
        folder, file = posixpath.split(path)
        if file == _LORA_FILE and not storage.exists(path):
            for place in (folder, storage.join(folder, _TRANSFORMER)):
                if is_transformer(place):
                    if alone:
                        return replace(model, loras=(), transformer=place)
                    raise _not_stackable(place)
        beside = storage.join(folder, _MODULES.get(file, file))
        if beside != path and storage.exists(beside):
            if alone:
                return replace(model, modules=beside)
            raise _not_stackable(beside)
    return model


def _not_stackable(path: str) -> ConfigError:
    return ConfigError(
        f"--stack: {path} is more than a LoRA, allowed: LoRAs alone (weights of the model "
        "itself do not add up)"
    )


def _metric(text: str) -> MetricChoice:
    from dopsd.evaluation.metrics import make_metric
    from dopsd.evaluation.spec import MetricChoice

    name, _, model = text.partition("=")
    make_metric(name)
    return MetricChoice(name, model or None)


def _prompts(
    source: str,
    count: int,
    out: str,
    vlm: str | None,
    tell: Callable[[dict[str, Any]], None],
) -> tuple[EvalPrompt, ...]:
    from dopsd.data.manifest import has_manifest
    from dopsd.evaluation.prompts import read_prompts, shapes_prompts

    if source.startswith("shapes:"):
        return shapes_prompts(source.removeprefix("shapes:"), count)
    if has_manifest(source):
        from dopsd.runtime.prompts import dataset_prompts

        return dataset_prompts(source, out, vlm, tell)
    return read_prompts(source)


def _prior(path: str | None) -> list[EvalPrompt]:
    from dataclasses import replace

    from dopsd.evaluation.prompts import PRIOR, read_prompts

    if path is None:
        return []
    return [replace(each, group=PRIOR, prior=True) for each in read_prompts(path)]
