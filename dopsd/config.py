"""One typed run config: YAML plus dotted overrides, unknown keys refused in one line.

Every field is documented where it is declared; ``dopsd config --reference`` prints these lines.
Paths may be local or ``s3://``. Sizes are samples, pixels, seconds and optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dopsd.config_adapters import Adapters, check_adapters
from dopsd.config_checkpoint import CheckpointSection
from dopsd.config_context import ContextSection, check_context_fits
from dopsd.config_data import DataSection
from dopsd.config_message import one_line
from dopsd.config_preflight import PreflightSection
from dopsd.config_roles import DeadlineSection, InferenceSection, LearnerSection, RoleSection
from dopsd.config_section import Device, Fraction, NonNegative, Positive, Section
from dopsd.config_yaml import DuplicateKeyError, load_yaml, yaml_problem
from dopsd.errors import ConfigError
from dopsd.urls import holds_credentials


class RunSection(Section):
    name: str = Field("run", description="Name of the run, shown in logs and LoRA metadata.")
    folder: str = Field("runs/run", description="Run folder (local or s3://).")
    seed: NonNegative = Field(0, description="Seed of noise, order, captions and LoRA init.")
    overwrite: bool = Field(False, description="Replace an existing run folder.")


class ModelSection(Section):
    family: Literal["z_image", "flux2_klein"] = Field("z_image", description="Model family.")
    base: str = Field(
        "shapes",
        description="Pipeline folder or hub id; `shapes` is the embedded tiny world.",
    )
    vlm: str | None = Field(
        None,
        description="VLM folder or hub id whose language model carries the text encoder's "
        "weights. Default: the folder `vlm` inside a local base, else the Qwen3-VL of the text "
        "encoder's size.",
    )
    revision: str | None = Field(None, description="Hub revision of the base.")
    vlm_revision: str | None = Field(None, description="Hub revision of the VLM.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Compute dtype of transformer and encoders; EMA stays fp32."
    )
    attention: str | None = Field(
        None, description="diffusers attention backend (e.g. `flash`, `native`); default: its own."
    )
    compile: bool = Field(
        False,
        description="torch.compile of the transformer's blocks in inference workers: their first "
        "calls take minutes, later ones less; states and targets differ by rounding.",
    )


class MethodSection(Section):
    objective: Literal["dopsd", "sft", "off_policy", "sft_on_teacher"] = Field(
        "dopsd",
        description="`dopsd`: the student's own states, the teacher's velocities there. The "
        "others are baselines. `sft`: noised targets, their analytic velocity. `off_policy`: "
        "the teacher's velocities at `off_policy_states`. `sft_on_teacher`: sft on the "
        "teacher's drawings.",
    )
    off_policy_states: Literal["noised", "teacher"] = Field(
        "noised",
        description="States of `objective: off_policy`: noised targets, or the teacher's own "
        "trajectory.",
    )
    teacher: Literal["ema", "frozen", "live"] = Field(
        "ema",
        description="The teacher's weights: an EMA of the student, the base, or the student.",
    )
    steps: Positive = Field(4, description="K, the states of a training roll-out.")
    sigmas: list[float] | None = Field(
        None,
        description="Override of the K roll-out sigmas (descending from 1, without the last "
        "0). Default: from the pipeline's own scheduler.",
    )
    weighting: Literal["x0", "velocity"] = Field(
        "x0", description="w_k: sigma_k^2 (the authors' scripts) or 1 (the paper's Eq. 7)."
    )
    ema_decay: Fraction = Field(0.9999, description="Decay of `teacher: ema`, per optimizer step.")
    teacher_sync_every: Positive = Field(
        1,
        description="Of `adapters: full`: N, the teacher is published every N optimizer steps; "
        "version v of the student goes with version v - v % N of the teacher.",
    )

    @property
    def teacher_decay(self) -> float:
        """EMA decay of the teacher: 1 keeps the base, 0 follows the student."""
        return {"ema": self.ema_decay, "frozen": 1.0, "live": 0.0}[self.teacher]

    @property
    def needs_targets(self) -> bool:
        """Whether states are made of the images' own latents."""
        noised = self.objective == "off_policy" and self.off_policy_states == "noised"
        return noised or self.objective == "sft"


class LoraSection(Section):
    rank: Positive = Field(64, description="LoRA rank.")
    alpha: Annotated[float, Field(gt=0)] = Field(128, description="LoRA alpha.")
    targets: list[str] | Literal["default", "all-linear"] = Field(
        "default",
        description="Module name suffixes, `default` (the authors' list of the family) or "
        "`all-linear` (of FLUX.2-klein: of its blocks). Every entry must match.",
    )
    modules_to_train: list[str] = Field(
        default_factory=lambda: ["norms", "embedders"],
        description="Of `adapters: lora+modules`: what is trained beside the LoRA. `norms`, "
        "`embedders`, or parts of module or parameter names. Every entry must match.",
    )
    dora: bool = Field(
        False,
        description="DoRA: direction by LoRA, magnitude by a vector of its own. Not under ZeRO-3; "
        "the file is for diffusers, ComfyUI leaves the magnitudes out.",
    )
    rank_stabilized: bool = Field(
        False, description="rsLoRA: scale by alpha / sqrt(rank), in place of alpha / rank."
    )

    @property
    def variant(self) -> dict[str, bool]:
        """Keywords of ``models.lora.inject``."""
        return {"dora": self.dora, "rank_stabilized": self.rank_stabilized}


class DebugSection(Section):
    dump_trajectories: NonNegative = Field(
        0,
        description="Write the scored micro-batches of the first steps as safetensors, N at most, "
        "and the adapters that made them.",
    )


class PreviewSection(Section):
    samples: NonNegative = Field(
        4, description="Samples drawn on contact sheet and run page; 0 leaves both drawings out."
    )
    steps: Positive | None = Field(None, description="Sampler steps. Default: method.steps.")
    every: NonNegative = Field(
        0,
        description="Keep both adapters every N optimizer steps, to draw how pictures changed "
        "over training; 0: at each quarter of the run.",
    )
    max_weights_mb: NonNegative = Field(
        512,
        description="Adapters larger than this (MB, one of them in model.dtype) are not kept, and "
        "only start and end are drawn.",
    )


class RunConfig(Section):
    """Everything a run is made of. Two runs of one config give the same adapter."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection = Field(default_factory=ModelSection)
    context: ContextSection = Field(default_factory=ContextSection)
    data: DataSection = Field(default_factory=DataSection)
    method: MethodSection = Field(default_factory=MethodSection)
    adapters: Adapters = Field(
        "lora",
        description="What is trained: a LoRA, all weights (`full`), or a LoRA and "
        "`lora.modules_to_train` beside it.",
    )
    lora: LoraSection = Field(default_factory=LoraSection)
    source: Literal["disaggregated", "fused"] = Field(
        "disaggregated",
        description="Where batches come from: roll-out and teacher actors, or the learners "
        "themselves.",
    )
    max_policy_lag: NonNegative = Field(
        0, description="L: step s is generated by policy version exactly max(0, s - L)."
    )
    transport: Literal["object_store", "rdt"] = Field(
        "object_store",
        description="How trajectories travel from roll-out to teacher. `rdt`: from device to "
        "device by Ray Direct Transport (NIXL if installed, else NCCL; gloo on CPUs); where that "
        "fails, the run says so and goes on through the object store.",
    )
    device: Device = Field(
        "auto", description="`auto`: GPUs for each role when the cluster has them."
    )
    encoder: RoleSection = Field(default_factory=RoleSection)
    rollout: RoleSection = Field(default_factory=RoleSection)
    teacher: RoleSection = Field(default_factory=RoleSection)
    inference: InferenceSection = Field(default_factory=InferenceSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    deadline: DeadlineSection = Field(default_factory=DeadlineSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    preview: PreviewSection = Field(default_factory=PreviewSection)
    preflight: PreflightSection = Field(default_factory=PreflightSection)
    debug: DebugSection = Field(default_factory=DebugSection)
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default_factory=lambda: ["tensorboard"],  # type: ignore[arg-type]
        description="Where metrics also go: `tensorboard` (in the run folder), `wandb`, `mlflow`.",
    )

    @property
    def shards(self) -> str:
        """Folder of the prepared shards."""
        return self.data.shards or f"{self.run.folder.rstrip('/')}/shards"

    @model_validator(mode="after")
    def _combinations(self) -> RunConfig:
        for key, text in _texts(self.model_dump(mode="json")):
            if holds_credentials(text):  # the config is written into the run folder and shown
                raise ValueError(
                    f"{key}: credentials in a URL, allowed: a URL without them; they come from the "
                    "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
                )
        learner, method = self.learner, self.method
        if learner.global_batch % learner.micro_batch:
            raise ValueError(
                f"learner.global_batch: {learner.global_batch} is not a multiple of "
                f"learner.micro_batch ({learner.micro_batch})"
            )
        if self.learner.workers > learner.global_batch // learner.micro_batch:
            raise ValueError(
                f"learner.workers: {learner.workers} learners, but a step has only "
                f"{learner.global_batch // learner.micro_batch} micro-batches "
                "(learner.global_batch / learner.micro_batch); allowed: at most that many"
            )
        if method.sigmas is not None:
            if len(method.sigmas) != method.steps:
                raise ValueError(
                    f"method.sigmas: {len(method.sigmas)} values, allowed: method.steps "
                    f"({method.steps})"
                )
            descending = all(a > b for a, b in zip(method.sigmas, method.sigmas[1:]))
            if not (descending and method.sigmas[-1] > 0 and method.sigmas[0] <= 1):
                raise ValueError(
                    f"method.sigmas: {method.sigmas}, allowed: strictly descending from 1 (a "
                    "roll-out starts at pure noise), without the final 0"
                )
        if self.source == "fused":
            if self.max_policy_lag:
                raise ValueError(
                    f"max_policy_lag: {self.max_policy_lag} with source: fused, allowed: 0 "
                    "(the learner rolls out under its own weights)"
                )
            if self.inference.shared:
                raise ValueError(
                    "inference.shared: true with source: fused, allowed: false "
                    "(there are no inference workers)"
                )
        if method.objective == "sft" and self.source == "disaggregated":
            raise ValueError(
                "source: disaggregated with method.objective: sft, allowed: fused (nobody rolls "
                "out or scores, so there is nothing for inference workers to do)"
            )
        if method.objective == "sft" and method.sigmas is not None:
            raise ValueError(
                "method.sigmas: given with method.objective: sft, allowed: none (its noise levels "
                "are drawn from the whole schedule)"
            )
        if method.objective in ("sft", "sft_on_teacher") and method.weighting != "x0":
            raise ValueError(
                f"method.weighting: {method.weighting} with method.objective: {method.objective}, "
                "allowed: the default (flow matching weighs its levels equally)"
            )
        if method.objective != "dopsd" and self.inference.shared:
            raise ValueError(
                f"inference.shared: true with method.objective: {method.objective}, allowed: "
                "false (the student does not roll out: there is one pool anyway, `teacher`)"
            )
        if method.objective != "dopsd" and self.debug.dump_trajectories:
            raise ValueError(
                f"debug.dump_trajectories: {self.debug.dump_trajectories} with "
                f"method.objective: {method.objective}, allowed: 0 (no student trajectory)"
            )
        if learner.workers > 1 and learner.gpus is not None and 0 < learner.gpus < 1:
            raise ValueError(
                f"learner.gpus: {learner.gpus} with {learner.workers} learners, allowed: whole "
                "GPUs (NCCL takes no two ranks on one GPU)"
            )
        if learner.warmup_steps > learner.steps:
            raise ValueError(
                f"learner.warmup_steps: {learner.warmup_steps}, allowed: at most learner.steps "
                f"({learner.steps})"
            )
        check_adapters(self)
        check_context_fits(self.context, self.model.family, self.model.vlm, self.data)
        if not self.data.source and not self.data.shards:
            raise ValueError(
                "data.source: missing, allowed: a folder, .jsonl or .parquet file, or "
                "shapes:CONCEPT (or prepared shards under data.shards)"
            )
        return self


def _texts(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a dumped config."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{prefix}{key}.")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield prefix + key, text


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, apply ``section.key=value`` overrides (values are YAML), validate.

    Raises ConfigError with one line naming the key, what was given and what is allowed.
    """
    if path is None:
        return parse_config("", "", overrides)
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config {path}: no such file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path}: {yaml_problem(error)}") from error
    return parse_config(text, str(path), overrides)


def parse_config(text: str, path: str, overrides: list[str] | None = None) -> RunConfig:
    """As :func:`load_config`, from the text of a file that is called ``path``."""
    try:
        values: Any = load_yaml(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: {yaml_problem(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: found {type(values).__name__}, allowed: a mapping")
    for override in overrides or []:
        _apply(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error, RunConfig)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; reads back to an equal RunConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: allowed: section.key=value")
    try:
        value = load_yaml(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{key}: {yaml_problem(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not YAML") from error
    if isinstance(value, str):
        value = _number(value)
    node = values
    *sections, leaf = key.split(".")
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section!r} is a value, not a section")
        node = child
    node[leaf] = value


def _number(text: str) -> Any:
    """YAML 1.1 reads ``2e-4`` as a string; people write it as a number."""
    try:
        return float(text)
    except ValueError:
        return text


def reference() -> str:
    """Every key with its type, default and meaning, as Markdown rows."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, entry in model.model_fields.items():
            annotation = entry.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{prefix}{name}.")
                continue
            default = entry.get_default(call_default_factory=True)
            rows.append(f"| `{prefix}{name}` | `{default}` | {entry.description} |")

    walk(RunConfig, "")
    return "\n".join(rows)
