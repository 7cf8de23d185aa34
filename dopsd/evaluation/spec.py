"""What is evaluated: models, prompts, metrics; checked before anything expensive starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from dopsd.config import Device, check_role
from dopsd.config.base import MOST, MOST_STEPS
from dopsd.errors import ConfigError, ModelError
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES
from dopsd.models.pretrained import portable_base
from dopsd.models.transformer_folder import transformer_files
from dopsd.shapes.world import PIXELS

BASE = "base"
"""Name of the model as it is; it is always drawn, as the mark for the others."""


@dataclass(frozen=True)
class EvaluatedModel:
    """The base with ``loras`` (files) loaded together in diffusers, each at full weight.

    ``groups``: the groups of prompts that it draws besides the prior ones; none means all.
    ``modules``: a file of what was trained beside the LoRA. ``transformer``: a folder in place of
    the base's transformer.
    """

    name: str
    loras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    modules: str | None = None
    transformer: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are small enough to be read whole: LoRAs, and modules at last."""
        return self.loras if self.modules is None else (*self.loras, self.modules)

    def covers(self, prompt: EvalPrompt) -> bool:
        """Whether the prompt is among those that this model is evaluated on."""
        return prompt.prior or not self.groups or prompt.group in self.groups


@dataclass(frozen=True)
class MetricChoice:
    """A metric by name; ``model`` (folder or hub id) replaces its default weights."""

    name: str
    model: str | None = None


@dataclass(frozen=True)
class EvaluateSpec:
    """One evaluation. Sizes in pixels, times in seconds; paths local or ``s3://``."""

    out: str
    prompts: tuple[EvalPrompt, ...]
    models: tuple[EvaluatedModel, ...] = ()
    metrics: tuple[MetricChoice, ...] = ()
    """None: the oracle and sharpness for base ``shapes``; else CLIP-S, DINO, LPIPS, sharpness."""
    base: str = "shapes"
    family: str = "z_image"
    revision: str | None = None
    dtype: str = "float32"
    attention: str | None = None
    """Attention backend of diffusers; None: its own choice."""
    quantize: str = "none"
    """As ``model.quantize`` of a run, of the base that samples of a prior are drawn by."""
    merge: tuple[str, ...] = ()
    """As ``model.merge`` of a run, under every model that is drawn by."""
    height: int | None = None
    """None: 32 for ``shapes``, else 1024."""
    width: int | None = None
    steps: tuple[int, ...] = (4,)
    seeds: tuple[int, ...] = (0,)
    batch: int = 8
    """Pictures of a call of the pipeline, and of a file of scores."""
    device: Device = "auto"
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 1.0
    """GPUs of each worker where there are any."""
    start_seconds: float = 900.0
    """Until a worker has loaded its models and answered for the first time."""
    step_seconds: float = 900.0
    """For each later answer."""
    partial: bool = False
    """LoRAs may fit the base in part."""
    restarts: int = 3
    """How often a worker that died or hangs is replaced, all workers together."""


def resolve(spec: EvaluateSpec) -> EvaluateSpec:
    """The spec with defaults filled in, the base as its first model, and local paths absolute.

    Raises ConfigError or ModelError, in one line, for whatever cannot work.
    """
    spec = resolve_models(spec)
    _check_prompts(spec)
    return spec


def resolve_models(spec: EvaluateSpec) -> EvaluateSpec:
    """As :func:`resolve`, before the prompts are known: a VLM may have to write them."""
    if spec.family not in FAMILIES:
        raise ConfigError(f"family: {spec.family!r}, allowed: {', '.join(FAMILIES)}")
    if spec.dtype not in DTYPES:
        raise ConfigError(f"dtype: {spec.dtype!r}, allowed: {', '.join(DTYPES)}")
    for key, low, high in (("steps", 1, MOST_STEPS), ("seeds", 0, MOST)):
        values = getattr(spec, key)
        if (
            not values
            or len(set(values)) < len(values)
            or not low <= min(values) <= max(values) <= high
        ):
            raise ConfigError(
                f"{key}: {list(values)}, allowed: different numbers from {low} to {high}"
            )
    if spec.batch < 1:
        raise ConfigError(f"batch: {spec.batch}, allowed: 1 or more")
    check_role(spec.workers, spec.cpus, spec.gpus)
    shapes = spec.base == "shapes"
    side = PIXELS if shapes else 1024
    defaults = ("oracle", "sharpness") if shapes else ("clip", "dino", "lpips", "sharpness")
    spec = replace(
        spec,
        out=_absolute(spec.out),
        base=_local(portable_base(spec.base, "base")),
        height=spec.height or side,
        width=spec.width or side,
        metrics=spec.metrics or tuple(map(MetricChoice, defaults)),
        models=_models(spec),
    )
    assert spec.height is not None and spec.width is not None
    family = FAMILIES[spec.family](spec.base, spec.revision, "base")
    family.latent_shape(spec.height, spec.width)
    if spec.out:
        storage.check_writable("out", spec.out)
    return replace(spec, metrics=_metrics(spec))


def _models(spec: EvaluateSpec) -> tuple[EvaluatedModel, ...]:
    models = [EvaluatedModel(BASE)]
    for model in spec.models:
        if not model.files and model.transformer is None:
            raise ConfigError(f"model {model.name!r}: no LoRA; the base is drawn anyway")
        if model.files and model.transformer is not None:
            raise ConfigError(
                f"model {model.name!r}: a LoRA on {model.transformer}, allowed: LoRAs or a "
                "transformer"
            )
        if model.name in (known.name for known in models):
            raise ConfigError(f"model {model.name!r}: two of this name, allowed: NAME=LORA")
        if not model.name or "/" in model.name:
            raise ConfigError(f"model {model.name!r}: allowed: a name without /")
        for file in model.files:
            if not storage.exists(file):
                what = "modules" if file == model.modules else "LoRA"
                raise ModelError(f"{file}: no such {what} file")
        if model.transformer is not None:
            transformer_files(model.transformer, FAMILIES[spec.family].transformer_class)
        models.append(
            replace(
                model,
                loras=tuple(_absolute(lora) for lora in model.loras),
                modules=model.modules and _absolute(model.modules),
                transformer=model.transformer and _absolute(model.transformer),
            )
        )
    return tuple(models)


def _check_prompts(spec: EvaluateSpec) -> None:
    if not spec.prompts:
        raise ConfigError("prompts: none, allowed: at least one")
    groups = {prompt.group for prompt in spec.prompts}
    seen: set[tuple[str, str]] = set()
    for prompt in spec.prompts:
        if (prompt.group, prompt.text) in seen:
            raise ConfigError(f"prompt {prompt.text[:60]!r}: twice in the group {prompt.group!r}")
        seen.add((prompt.group, prompt.text))
    for model in spec.models:
        if unknown := sorted(set(model.groups) - groups):
            raise ConfigError(
                f"model {model.name!r}: no prompts of the group {unknown[0]!r}, allowed: "
                + ", ".join(sorted(groups))
            )
    for prompt in spec.prompts:
        for path in prompt.references:
            if not storage.exists(path):
                raise ConfigError(f"prompt {prompt.text[:60]!r}: no such reference {path}")


def _metrics(spec: EvaluateSpec) -> tuple[MetricChoice, ...]:
    chosen: list[MetricChoice] = []
    for choice in spec.metrics:
        make_metric(choice.name)
        if choice.name in (known.name for known in chosen):
            raise ConfigError(f"metric {choice.name!r}: asked for twice")
        model = choice.model
        if choice.name == "latent" and model is None:
            model = spec.base
        chosen.append(replace(choice, model=_local(model) if model else None))
    size = (spec.width, spec.height)
    if "oracle" in (choice.name for choice in chosen) and size != (PIXELS, PIXELS):
        raise ConfigError(
            f"metric 'oracle': pictures of {size[0]}x{size[1]} pixels, allowed: those of the "
            f"shapes world, {PIXELS}x{PIXELS}"
        )
    return tuple(chosen)


def _absolute(path: str) -> str:
    """Workers stand in other folders."""
    return path if storage.is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _local(model: str) -> str:
    """A model's folder as an absolute path; a hub id stays as it is."""
    return _absolute(model) if os.path.isdir(os.path.expanduser(model)) else model
