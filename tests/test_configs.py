"""Every recipe loads, every preset is DeepSpeed's, and every mistake gets its own line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from dopsd.config import RunConfig, dump_config, load_config
from dopsd.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
DEMO = CONFIGS / "shapes.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_survives_a_round_trip(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


def test_demo_fits_two_cpus() -> None:
    config = load_config(DEMO)
    roles = [config.encoder, config.rollout, config.teacher, config.learner]
    assert sum(role.workers * role.cpus for role in roles) < 2
    assert config.device == "cpu"


def test_gpu_recipe_is_the_authors() -> None:
    config = load_config(CONFIGS / "z_image_turbo_lora.yaml")
    assert (config.method.steps, config.method.weighting, config.method.ema_decay) == (
        4,
        "x0",
        0.9999,
    )
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (64, 128, "default")
    learner = config.learner
    assert (learner.lr, learner.weight_decay, learner.clip) == (1e-4, 0, 1)
    assert (learner.steps, learner.global_batch, learner.micro_batch) == (2000, 4, 1)
    assert (config.context.image_min_pixels, config.context.image_max_pixels) == (512**2, 768**2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_preset_is_zero_and_the_summing_of_gradients_only(stage: int) -> None:
    from deepspeed.runtime.config import get_communication_data_type
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    preset = json.loads((CONFIGS / "deepspeed" / f"zero{stage}.json").read_text())
    assert set(preset) == {"zero_optimization", "communication_data_type", "data_types"}
    assert get_communication_data_type(preset) == torch.float32
    assert preset["data_types"] == {"grad_accum_dtype": "fp32"}
    assert preset["zero_optimization"]["overlap_comm"] is False
    names = {f.alias or name for name, f in DeepSpeedZeroConfig.model_fields.items()}
    assert set(preset["zero_optimization"]) <= names
    assert DeepSpeedZeroConfig(**preset["zero_optimization"]).stage == stage


SECTIONS = (
    "run, model, context, data, method, lora, source, max_policy_lag, device, encoder, rollout, "
    "teacher, inference, learner, deadline, checkpoint, preview, preflight, debug, trackers"
)
LEARNER = ", ".join(type(RunConfig.model_fields["learner"].default_factory()).model_fields)

WRONG_OVERRIDES = [
    # unknown keys
    ("leaner.lr=1e-4", f"leaner: unknown key (did you mean learner?); allowed: {SECTIONS}"),
    ("seed=3", f"seed: unknown key; allowed: {SECTIONS}"),
    (
        "learner.microbatch=1",
        f"learner.microbatch: unknown key (did you mean micro_batch?); allowed: {LEARNER}",
    ),
    (
        "teacher.gpu=1",
        "teacher.gpu: unknown key (did you mean gpus?); allowed: workers, cpus, gpus",
    ),
    # wrong types
    ("learner.lr=fast", "learner.lr: 'fast', allowed: a number"),
    ("learner.lr=", "learner.lr: None, allowed: a number"),
    ("learner.lr=.inf", "learner.lr: inf, allowed: a finite number"),
    ("learner.steps=2.5", "learner.steps: 2.5, allowed: a whole number"),
    ("run.overwrite=perhaps", "run.overwrite: 'perhaps', allowed: true or false"),
    ("run.name=2026", "run.name: 2026, allowed: text (in quotes)"),
    ("data.caption_keys=short", "data.caption_keys: 'short', allowed: a list"),
    ("lora.targets=all", "lora.targets: 'all', allowed: a list or 'default' or 'all-linear'"),
    ("rollout=3", "rollout: 3, allowed: a section of keys"),
    # out of range
    ("learner.lr=0", "learner.lr: 0, allowed: greater than 0"),
    ("learner.steps=0", "learner.steps: 0, allowed: at least 1"),
    ("max_policy_lag=-1", "max_policy_lag: -1, allowed: at least 0"),
    ("method.ema_decay=1.5", "method.ema_decay: 1.5, allowed: at most 1"),
    ("learner.betas=[0.9, 2]", "learner.betas.1: 2, allowed: at most 1"),
    ("learner.betas=[0.9]", "learner.betas.1: missing"),
    ("model.dtype=float16", "model.dtype: 'float16', allowed: 'float32' or 'bfloat16'"),
    ("device=tpu", "device: 'tpu', allowed: 'auto', 'cpu' or 'cuda'"),
    # impossible combinations
    (
        "learner.micro_batch=3",
        "learner.global_batch: 8 is not a multiple of learner.micro_batch (3)",
    ),
    (
        "learner.workers=3",
        "learner.workers: 3 learners, but a step has only 2 micro-batches "
        "(learner.global_batch / learner.micro_batch); allowed: at most that many",
    ),
    (
        "source=fused",
        "max_policy_lag: 1 with source: fused, allowed: 0 "
        "(the learner rolls out under its own weights)",
    ),
    (
        "source=fused max_policy_lag=0 inference.shared=true",
        "inference.shared: true with source: fused, allowed: false "
        "(there are no inference workers)",
    ),
    (
        "method.objective=sft",
        "source: disaggregated with method.objective: sft, allowed: fused (nobody rolls out or "
        "scores, so there is nothing for inference workers to do)",
    ),
    (
        "method.objective=off_policy inference.shared=true",
        "inference.shared: true with method.objective: off_policy, allowed: false "
        "(the student does not roll out: there is one pool anyway, `teacher`)",
    ),
    (
        "method.objective=sft_on_teacher debug.dump_trajectories=2",
        "debug.dump_trajectories: 2 with method.objective: sft_on_teacher, allowed: 0 "
        "(no student trajectory)",
    ),
    ("method.sigmas=[1, 0.5]", "method.sigmas: 2 values, allowed: method.steps (4)"),
    (
        "method.sigmas=[1, 0.9, 0.5, 0]",
        "method.sigmas: [1.0, 0.9, 0.5, 0.0], allowed: strictly descending from 1 (a "
        "roll-out starts at pure noise), without the final 0",
    ),
    (
        "learner.gpus=0.5",
        "learner.gpus: 0.5 with 2 learners, allowed: whole GPUs "
        "(NCCL takes no two ranks on one GPU)",
    ),
    (
        "learner.warmup_steps=100",
        "learner.warmup_steps: 100, allowed: at most learner.steps (80)",
    ),
    (
        "context.image_min_pixels=65536",
        "context.image_min_pixels: 65536, allowed: at most context.image_max_pixels (16384)",
    ),
    ("preflight.margin=1", "preflight.margin: 1, allowed: less than 1"),
    ("preflight.mode=maybe", "preflight.mode: 'maybe', allowed: 'warn', 'strict' or 'off'"),
    (
        "data.source=null",
        "data.source: missing, allowed: a folder, a .jsonl file or shapes:CONCEPT "
        "(or prepared shards under data.shards)",
    ),
    # malformed overrides
    ("learner.lr", "override 'learner.lr': allowed: section.key=value"),
    ("=3", "override '=3': allowed: section.key=value"),
    ("learner..lr=3", "override 'learner..lr=3': allowed: section.key=value"),
    ("learner.lr=[1", "learner.lr: '[1' is not YAML"),
    ("device.cpu=1", "device.cpu: 'device' is a value, not a section"),
]


@pytest.mark.parametrize(("text", "line"), WRONG_OVERRIDES, ids=[row[0] for row in WRONG_OVERRIDES])
def test_wrong_override_gets_its_line(text: str, line: str) -> None:
    # A space separates overrides, except inside a list.
    overrides = [text] if "[" in text else text.split(" ")
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, overrides)
    assert str(caught.value) == line


WRONG_FILES = [
    ("learner: [1", "not YAML: line 1, column 12: expected ',' or ']', but got '<stream end>'"),
    ("- learner", "found list, allowed: a mapping"),
    ("shapes", "found str, allowed: a mapping"),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES)
def test_wrong_file_gets_its_line(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"config {file}: {line}"


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.yaml")
    assert str(caught.value) == f"config {tmp_path / 'none.yaml'}: no such file"
    file = tmp_path / "picture.yaml"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match=r"picture.yaml: not YAML: 'utf-8' codec can't decode"):
        load_config(file)


def test_an_empty_file_still_needs_data(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^data\.source: missing"):
        load_config(file)


def test_off_is_a_word_for_the_preflight() -> None:
    """YAML 1.1 reads it as false, and pydantic would have none of it."""
    config = load_config(DEMO, ["preflight.mode=off"])
    assert config.preflight.mode == "off"
    assert yaml.safe_load(dump_config(config))["preflight"]["mode"] == "off"


def test_the_last_override_of_a_key_wins_and_scientific_notation_is_a_number() -> None:
    config = load_config(DEMO, ["learner.lr=1e-3", "learner.lr=2e-4", "lora.targets=[to_q, to_k]"])
    assert config.learner.lr == 2e-4
    assert config.lora.targets == ["to_q", "to_k"]
