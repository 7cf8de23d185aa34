"""Drawing and scoring, as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dopsd.api.call import call
from dopsd.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dopsd.config import Device
    from dopsd.evaluation.prompts import EvalPrompt
    from dopsd.evaluation.results import Results


def generate(
    prompts: str | Sequence[str],
    *,
    lora: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    base: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    modules: str | None = None,
    transformer: str | None = None,
    references: Sequence[str] = (),
    steps: int | None = None,
    width: int | None = None,
    height: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    partial_lora: bool = False,
) -> list[Image]:
    """A picture per prompt, drawn as `dopsd generate` draws it; nothing is written.

    ``lora``: one or several of ``LORA[@WEIGHT]``, each a LoRA file, a run folder (and all that was
    trained there) or LIBRARY:CONCEPT; ``base``: pipeline folder, hub id or ``shapes``;
    ``references``: paths of pictures, shown with every prompt; ``width``, ``height``: pixels, by
    default 32 of ``shapes`` and else 1024; picture i uses seed ``seed`` + i; ``partial_lora``: the
    LoRA may fit in part. Base, family and steps are by default what the LoRA's file says. Raises a
    DopsdError.
    """
    with call(progress=False):
        from dopsd.api.drawing import drawing

        asked = drawing(
            [lora] if isinstance(lora, str | os.PathLike) else list(lora or ()),
            base=base,
            family=family,
            revision=revision,
            modules=modules,
            transformer=transformer,
            steps=steps,
            dtype=dtype,
            partial=partial_lora,
        )
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return list(asked.pictures(texts, references, (height, width), seed))


def evaluate(
    out: str,
    *,
    loras: Sequence[str] = (),
    stack: bool = False,
    prompts: Sequence[str] = (),
    prior: str | None = None,
    metrics: Sequence[str] = (),
    base: str = "shapes",
    family: str = "z_image",
    revision: str | None = None,
    dtype: str = "float32",
    steps: Sequence[int] = (4,),
    seeds: int = 1,
    count: int = 24,
    prompt_vlm: str | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 8,
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 1.0,
    device: Device = "auto",
    partial_lora: bool = False,
    take_over: bool = False,
    progress: bool = True,
    mark: str = "",
) -> Results:
    """Draw with the base and with trained models from equal noise, and score, as `dopsd evaluate`
    does; called again with the same it goes on in the folder ``out``.

    ``loras``: each ``[NAME=]PATH`` of a LoRA file, a run or transformer folder, or LIBRARY:CONCEPT;
    ``stack``: also with all of them loaded together. ``prompts``: files (.txt, .jsonl), folders of
    prepared shards or shapes:CONCEPT, of which ``count`` prompts are taken; ``prior``: a .txt about
    what the base knows; ``metrics``: each ``NAME[=MODEL]``, by default those of the base; ``seeds``
    pictures of each prompt; sizes in pixels; ``workers`` actors with ``cpus`` and ``gpus`` each;
    ``mark`` stands before the names of options in messages.

    Returns the results (``markdown()`` is the table), which lie in ``out`` as well. Raises a
    DopsdError.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: {device!r}, allowed: auto, cpu, cuda")
    if not prompts and base != "shapes":
        raise ConfigError("prompts: missing, allowed: a file, or a folder of prepared shards")
    stays = f"what is drawn and scored stays in {out}; the same call goes on"
    with call(progress, stays) as show:
        from dopsd.contexts.lengths import cut_prompts
        from dopsd.driver.monitoring.progress import Report
        from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
        from dopsd.evaluation.folder import check_out
        from dopsd.evaluation.prompts import PRIOR, read_prompts
        from dopsd.evaluation.run import evaluate as run
        from dopsd.evaluation.spec import EvaluateSpec, MetricChoice, resolve_models
        from dopsd.library.lora import concept_lora
        from dopsd.models import FAMILIES
        from dopsd.ownership.lease import claimed

        models = tuple(map(as_trained, evaluated_models([*map(concept_lora, loras)], stack)))
        named = (choice.partition("=") for choice in metrics)
        spec = EvaluateSpec(
            out=out,
            prompts=(),
            models=models,
            metrics=tuple(MetricChoice(name, model or None) for name, _, model in named),
            base=base,
            family=family,
            revision=revision,
            dtype=dtype,
            height=height,
            width=width,
            steps=tuple(steps),
            seeds=tuple(range(seeds)),
            batch=batch,
            device=device,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            partial=partial_lora,
        )
        resolve_models(spec)  # before a VLM writes prompts
        check_out(out)
        tell = partial(show, "prompts")

        def told(line: str) -> None:
            show("prompts", Report([line]))

        with claimed(out, f"{mark}out", take_over=take_over, tell=told):
            asked = [
                prompt
                for source in prompts or ["shapes:bars"]
                for prompt in _prompts(source, count, out, prompt_vlm, tell, device)
            ]
            if prior is not None:
                asked += [replace(p, group=PRIOR, prior=True) for p in read_prompts(prior)]
            # Two concepts of the shapes world bring the same prior prompts.
            unique = {(prompt.text, prompt.group): prompt for prompt in asked}
            texts = sorted({prompt.text for prompt in unique.values()})
            if lines := cut_prompts(FAMILIES[family](base, revision, "base"), texts):
                show("prompts", Report(lines))
            return run(replace(spec, prompts=tuple(unique.values())), show)


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
