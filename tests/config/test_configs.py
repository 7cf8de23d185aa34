"""Every recipe loads, every preset is DeepSpeed's, and every mistake gets its own line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from dopsd.config import RunConfig, dump_config, load_config, parse_config
from dopsd.config.context import CONTEXT_NEEDS, REFERENCE_FAMILIES, VLM_FAMILIES
from dopsd.config.load import shown_values, stored_config
from dopsd.config.recipes import recipes
from dopsd.contexts import CONTEXTS
from dopsd.data.run_data import read_spec
from dopsd.data.shapes_source import sprites_seed
from dopsd.driver.setup.checks import check_context
from dopsd.errors import ConfigError
from dopsd.library.catalogue.recipe import Recipes
from dopsd.models import FAMILIES
from tests.helpers.paths import CONFIGS

RECIPES = sorted(CONFIGS.glob("*.yaml"))
COUNT = 16
"""Recipes that there are: a test over all of them cannot pass over none."""
DEMO = CONFIGS / "shapes.yaml"


def test_every_recipe_loads_by_its_name() -> None:
    assert recipes() == [path.stem for path in RECIPES] and len(RECIPES) == COUNT
    for path in RECIPES:
        assert load_config(path.stem) == load_config(path), path.stem


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


@pytest.mark.parametrize("name", ["shapes_library", "z_image_turbo_library"])
def test_library_recipes_are_libraries(name: str) -> None:
    config = load_config(name)
    Recipes(config)  # refuses what no library can have
    assert config.library.workers > 1 and config.learner.gpus in (None, 0, 1)
    steps = config.library.steps
    assert steps.min <= steps.of(12) <= steps.max


def test_the_library_demo_fits_two_cpus() -> None:
    config = load_config("shapes_library")
    assert config.library.workers * config.learner.cpus < 2 and config.encoder.cpus < 2
    assert config.device == "cpu" and sprites_seed(config.data.source or "") == 0


def test_gpu_recipe_is_the_authors() -> None:
    config = load_config(CONFIGS / "z_image_turbo_lora.yaml")
    assert (config.method.steps, config.method.weighting, config.method.ema_decay) == (
        4,
        "x0",
        0.9999,
    )
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (64, 128, "default")
    learner = config.learner
    assert (learner.lr, learner.weight_decay, learner.max_grad_norm) == (1e-4, 0, 1)
    assert (learner.steps, learner.global_batch, learner.micro_batch) == (2000, 4, 1)
    assert (config.context.image_min_pixels, config.context.image_max_pixels) == (512**2, 768**2)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("4b_vlm", "vlm"),
        ("4b_edit", "edit"),
        ("9b_edit", "edit"),
        ("4b_edit_reference", "edit_reference"),
    ],
)
def test_flux2_recipes_are_the_authors(name: str, context: str) -> None:
    config = load_config(CONFIGS / f"flux2_klein_{name}_lora.yaml")
    assert (config.model.family, config.context.name) == ("flux2_klein", context)
    assert config.model.base.endswith(name[:2].upper())
    assert (config.method.steps, config.preview.steps, config.method.ema_decay) == (4, 4, 0.9999)
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (64, 128, "default")
    learner = config.learner
    assert (learner.lr, learner.weight_decay, learner.max_grad_norm) == (2e-5, 0, 1)
    assert (learner.steps, learner.global_batch, learner.micro_batch) == (3000, 4, 1)
    assert config.context.text_tokens == 512


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("zero1", 1),
        ("zero2", 2),
        ("zero3", 3),
        ("zero3_offload_optimizer", 3),
        ("zero3_offload", 3),
    ],
)
def test_preset_is_zero_and_the_summing_of_gradients_only(name: str, stage: int) -> None:
    from deepspeed.runtime.config import get_communication_data_type
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    preset = json.loads((CONFIGS / "deepspeed" / f"{name}.json").read_text())
    assert set(preset) == {"zero_optimization", "communication_data_type", "data_types"}
    assert get_communication_data_type(preset) == torch.float32
    assert preset["data_types"] == {"grad_accum_dtype": "fp32"}
    assert preset["zero_optimization"]["overlap_comm"] is False
    names = {f.alias or name for name, f in DeepSpeedZeroConfig.model_fields.items()}
    assert set(preset["zero_optimization"]) <= names
    assert DeepSpeedZeroConfig(**preset["zero_optimization"]).stage == stage
    moved = {key for key in preset["zero_optimization"] if key.startswith("offload_")}
    expected = {"zero3_offload_optimizer": {"offload_optimizer"}}
    expected["zero3_offload"] = {"offload_optimizer", "offload_param"}
    assert moved == expected.get(name, set())


SECTIONS = (
    "run, model, context, data, method, adapters, lora, source, max_policy_lag, transport, device, "
    "encoder, rollout, teacher, inference, learner, timeouts, library, checkpoint, plan, preview, "
    "preflight, debug, trackers"
)
LEARNER = ", ".join(type(RunConfig.model_fields["learner"].default_factory()).model_fields)

WRONG_OVERRIDES = [
    # unknown keys
    ("leaner.lr=1e-4", f"leaner: unknown key (did you mean learner?); allowed: {SECTIONS}"),
    ("seed=3", f"seed: unknown key (did you mean run.seed?); allowed: {SECTIONS}"),
    ("sead=3", f"sead: unknown key; allowed: {SECTIONS}"),
    (
        "learner.microbatch=1",
        f"learner.microbatch: unknown key (did you mean micro_batch?); allowed: {LEARNER}",
    ),
    (
        "teacher.gpu=1",
        "teacher.gpu: unknown key (did you mean gpus?); allowed: workers, cpus, gpus, labels",
    ),
    # wrong types
    ("learner.lr=fast", "learner.lr: 'fast', allowed: a number"),
    ("learner.lr=", "learner.lr: None, allowed: a number"),
    ("learner.lr=inf", "learner.lr: inf, allowed: a finite number"),
    ("learner.steps=2.5", "learner.steps: 2.5, allowed: a whole number"),
    ("run.overwrite=perhaps", "run.overwrite: 'perhaps', allowed: true or false"),
    ("run.name=", "run.name: None, allowed: text (in quotes)"),
    ("data.caption_keys=short", "data.caption_keys: 'short', allowed: a list"),
    ("lora.targets=all", "lora.targets: 'all', allowed: a list or 'default' or 'all-linear'"),
    ("rollout=3", "rollout: 3, allowed: a section of keys"),
    # out of range
    ("learner.lr=0", "learner.lr: 0, allowed: greater than 0"),
    ("learner.steps=0", "learner.steps: 0, allowed: at least 1"),
    ("max_policy_lag=-1", "max_policy_lag: -1, allowed: at least 0"),
    ("method.ema_decay=1.5", "method.ema_decay: 1.5, allowed: at most 1"),
    ("learner.betas=[0.9, 2]", "learner.betas.1: 2, allowed: less than 1"),
    ("learner.betas=[0.9]", "learner.betas.1: missing"),
    ("model.dtype=float16", "model.dtype: 'float16', allowed: 'float32' or 'bfloat16'"),
    ("device=tpu", "device: 'tpu', allowed: 'auto', 'cpu' or 'cuda'"),
    ("learner.betas=[1, 1]", "learner.betas.0: 1, allowed: less than 1"),
    ("learner.eps=1e-40", "learner.eps: 1e-40, allowed: at least 1e-30"),
    ("learner.weight_decay=1e9", "learner.weight_decay: 1e9, allowed: at most 100"),
    ("encoder.cpus=0.00001", "encoder.cpus: 0.00001, allowed: 0 or at least 0.0001"),
    ("rollout.gpus=1.5", "rollout.gpus: 1.5, allowed: a part of one GPU, or whole ones"),
    ("teacher.cpus=1e9", "teacher.cpus: 1e9, allowed: at most 10000"),
    ("learner.steps=1e12", "learner.steps: 1e12, allowed: at most 2147483647"),
    ("method.steps=1001", "method.steps: 1001, allowed: at most 1000"),
    ("timeouts.step=0", "timeouts.step: 0, allowed: greater than 0"),
    ("timeouts.startup=1e300", "timeouts.startup: 1e300, allowed: at most 100000000"),
    ("run.seed=1e30", "run.seed: 1e30, allowed: at most 2^63 - 1"),
    ("data.concept_weights.a=1e308", "data.concept_weights.a: 1e308, allowed: at most 1000"),
    # texts
    (
        'run.folder="a\\0b"',
        r"run.folder: 'a\x00b' holds U+0000, which is no text; allowed: text without control "
        "characters",
    ),
    ('run.name="\\udc80"', "run.name: a text that is not Unicode: half of a surrogate pair"),
    (
        "data.source=https://host/a.jsonl",
        "data.source: 'https://...', allowed: a path on this machine, or s3://BUCKET/...",
    ),
    ("run.folder=s3://", "run.folder: s3:// without a bucket, allowed: s3://BUCKET/..."),
    # impossible combinations
    (
        "learner.cpus=0",
        "learner.cpus: 0 without a GPU, allowed: more than 0 (Ray Train places learners by what "
        "they take)",
    ),
    (
        "learner.weight_decay=100 learner.lr=0.1",
        "learner.weight_decay: 100 with learner.lr: 0.1, allowed: a product below 1 (each step "
        "takes that part of the weights away)",
    ),
    (
        "method.sigmas=[0.9, 0.5, 0.3, 0.1]",
        "method.sigmas: [0.9, 0.5, 0.3, 0.1], allowed: strictly descending from 1 (a rollout "
        "starts at pure noise), without the final 0",
    ),
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
        "learner.min_workers=3",
        "learner.min_workers: 3, allowed: at most learner.workers (2)",
    ),
    ("learner.resize_interval_s=0", "learner.resize_interval_s: 0, allowed: greater than 0"),
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
    (
        "method.objective=sft_on_teacher method.weighting=velocity",
        "method.weighting: velocity with method.objective: sft_on_teacher, allowed: the default "
        "(flow matching weighs its levels equally)",
    ),
    ("method.sigmas=[1, 0.5]", "method.sigmas: [1.0, 0.5], allowed: as many as method.steps (4)"),
    (
        "method.sigmas=[1, 0.9, 0.5, 0]",
        "method.sigmas: [1.0, 0.9, 0.5, 0.0], allowed: strictly descending from 1 (a "
        "rollout starts at pure noise), without the final 0",
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
    # contexts
    (
        "context.name=images",
        "context.name: 'images', allowed: 'vlm', 'enhanced_prompt', 'edit' or 'edit_reference'",
    ),
    (
        "context.name=edit",
        "context.name: edit with model.family: z_image, allowed: vlm or enhanced_prompt "
        "(its transformer takes no reference tokens)",
    ),
    (
        "context.name=edit_reference",
        "context.name: edit_reference with model.family: z_image, allowed: vlm or enhanced_prompt "
        "(its transformer takes no reference tokens)",
    ),
    (
        "context.name=enhanced_prompt",
        "context.prompt_pairs: missing with context.name: enhanced_prompt, allowed: pairs of "
        "caption keys [student's, teacher's], e.g. [[short, detailed]]",
    ),
    (
        "context.prompt_pairs=[[short, detailed]]",
        "context.prompt_pairs: given with context.name: vlm, allowed: none (both roles read one "
        "caption); context.name: enhanced_prompt takes pairs",
    ),
    ("context.prompt_pairs=[[short]]", "context.prompt_pairs.0.1: missing"),
    ("context.prompt_pairs=short", "context.prompt_pairs: 'short', allowed: a list"),
    (
        "context.instruction=again",
        "context.instruction: given with context.name: vlm, allowed: none (only edit and "
        "edit_reference have one)",
    ),
    (
        "context.reference_max_pixels=4194305",
        "context.reference_max_pixels: 4194305, allowed: at most 4194304",
    ),
    (
        "data.pixel_area=[1024, 0]",
        "data.pixel_area: [1024, 0], allowed: a whole number from 1 to 67108864, or a list of such",
    ),
    ("transport=nccl", "transport: 'nccl', allowed: 'object_store' or 'rdt'"),
    ("preflight.margin=1", "preflight.margin: 1, allowed: less than 1"),
    ("learner.steps=yes", "learner.steps: yes, allowed: a whole number"),
    ("learner.lr=true", "learner.lr: 'true', allowed: a number"),
    ("checkpoint.keep_every=on", "checkpoint.keep_every: on, allowed: a whole number"),
    ("preflight.mode=maybe", "preflight.mode: 'maybe', allowed: 'warn', 'strict' or 'off'"),
    (
        "data.source=null",
        "data.source: missing, allowed: a folder, .jsonl or .parquet file, or shapes:CONCEPT "
        "(or prepared shards under data.shards)",
    ),
    # adapters
    ("adapters=all", "adapters: 'all', allowed: 'lora', 'full' or 'lora+modules'"),
    (
        "method.teacher_sync_every=2",
        "method.teacher_sync_every: 2 with adapters: lora, allowed: 1 (a small teacher goes out "
        "with every version; adapters: full takes more)",
    ),
    (
        "adapters=full inference.shared=true",
        "inference.shared: true with adapters: full, allowed: false (student and teacher differ in "
        "the model's own weights, so each needs a model)",
    ),
    (
        "adapters=full preview.samples=0 learner.optimizer=adamw8bit",
        "learner.optimizer: adamw8bit with adapters: full, allowed: adamw (the teacher's average "
        "lies beside its moments)",
    ),
    (
        "learner.optimizer=prodigy",
        "learner.lr: 0.0005 with learner.optimizer: prodigy, allowed: 0.1 or more, as a rule 1 (it "
        "multiplies the rate that Prodigy finds)",
    ),
    (
        "learner.d_coef=2",
        "learner.d_coef: 2 with learner.optimizer: adamw, allowed: with prodigy",
    ),
    (
        "learner.optimizer=adafactor",
        "learner.optimizer: adafactor, allowed: adamw, adamw8bit or prodigy (it needs the rows and "
        "columns of whole matrices, and ZeRO cuts them up flat; adamw8bit takes little memory, "
        "too)",
    ),
    (
        "adapters=full preview.samples=0 lora.dora=true",
        "lora.dora: true with adapters: full, allowed: false (there is no LoRA)",
    ),
    (
        "adapters=full preview.samples=0 max_policy_lag=0 source=fused",
        "source: fused with adapters: full, allowed: disaggregated, or method.teacher: live, or "
        "method.objective: sft (the teacher would need a second model in the learners)",
    ),
    (
        "adapters=lora+modules preview.samples=0 max_policy_lag=0 source=fused",
        "source: fused with adapters: lora+modules, allowed: disaggregated (the teacher would need "
        "a second model in the learners)",
    ),
    # malformed overrides
    ("learner.lr", "override 'learner.lr': allowed: section.key=value"),
    ("=3", "override '=3': allowed: section.key=value"),
    ("learner..lr=3", "override 'learner..lr=3': allowed: section.key=value"),
    (
        "learner.lr=[1",
        "learner.lr: not YAML: line 1, column 3: expected ',' or ']', but got '<stream end>'",
    ),
    (
        'learner={"lr":1e-4,"lr":2e-4}',
        'learner: line 1, column 12: found duplicate key "lr"; allowed: once',
    ),
    ("device.cpu=1", "device.cpu: 'device' is a value, not a section"),
]


@pytest.mark.parametrize(("text", "line"), WRONG_OVERRIDES, ids=[row[0] for row in WRONG_OVERRIDES])
def test_wrong_override_gets_its_line(text: str, line: str) -> None:
    # A space separates overrides, except inside a list.
    overrides = [text] if "[" in text else text.split(" ")
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, overrides)
    assert str(caught.value) == line


WRONG_CONTEXTS = [
    (
        {"context": {"name": "enhanced_prompt", "prompt_pairs": [["short", "short"]]}},
        "context.prompt_pairs: [short, short], allowed: two different keys (the teacher would see "
        "nothing that the student does not)",
    ),
    (
        {
            "context": {"name": "enhanced_prompt", "prompt_pairs": [["short", "long"]]},
            "data": {"caption_keys": ["short"]},
        },
        "data.caption_keys: given with context.name: enhanced_prompt, allowed: none "
        "(context.prompt_pairs names the captions)",
    ),
    (
        {
            "context": {"name": "enhanced_prompt", "prompt_pairs": [["short", "long"]]},
            "data": {"caption_dropout": 0.1},
        },
        "data.caption_dropout: 0.1 with context.name: enhanced_prompt, allowed: 0 (both roles "
        "would read the same empty prompt)",
    ),
    (
        {"model": {"family": "flux2_klein", "vlm": "owner/vlm"}, "context": {"name": "edit"}},
        "model.vlm: given with context.name: edit, allowed: none (nothing is shown to a VLM)",
    ),
    (
        {"model": {"family": "flux2_klein"}, "context": {"name": "edit", "instruction": " "}},
        "context.instruction: ' ', allowed: a sentence",
    ),
]


@pytest.mark.parametrize(
    ("sections", "line"), WRONG_CONTEXTS, ids=[row[1] for row in WRONG_CONTEXTS]
)
def test_wrong_context_gets_its_line(sections: dict, line: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": {"source": "x"}} | sections), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["data.source=x"])
    assert str(caught.value) == line


def test_what_contexts_need_is_what_encoders_and_families_have() -> None:
    assert CONTEXTS.keys() == CONTEXT_NEEDS.keys()
    taking = {name for name, family in FAMILIES.items() if family.takes_references}
    assert taking == {*REFERENCE_FAMILIES}
    assert {name for name, family in FAMILIES.items() if family.encoder_sees} == {*VLM_FAMILIES}


@pytest.mark.parametrize("objective", ["dopsd", "sft", "off_policy", "sft_on_teacher"])
@pytest.mark.parametrize("name", sorted(CONTEXT_NEEDS))
def test_a_stream_reads_what_context_and_objective_look_at(name: str, objective: str) -> None:
    pairs = [["short", "long"]] if name == "enhanced_prompt" else []
    config = RunConfig.model_validate(
        {
            "model": {"family": "flux2_klein"},
            "context": {"name": name, "prompt_pairs": pairs},
            "data": {"source": "x"},
            "method": {"objective": objective},
            "source": "fused",
        }
    )
    reads = read_spec(config)
    assert reads.images == (name != "enhanced_prompt" or objective in ("sft", "off_policy"))
    assert reads.reference_pixels == (1024**2 if name == "edit_reference" else 0)
    assert reads.prompt_pairs == tuple(map(tuple, pairs))


def test_references_under_zero_3_want_micro_batches_of_one(tiny_flux2: Path) -> None:
    def config(micro_batch: int) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"family": "flux2_klein", "base": str(tiny_flux2)},
                "context": {"name": "edit_reference"},
                "data": {"source": "x"},
                "learner": {"micro_batch": micro_batch},
            }
        )

    check_context(config(2), zero_stage=2)
    check_context(config(1), zero_stage=3)
    with pytest.raises(ConfigError, match=r"^learner.micro_batch: 2 with .* stage 3, allowed: 1"):
        check_context(config(2), zero_stage=3)


WRONG_FILES = [
    ("learner: [1", "not YAML: line 1, column 12: expected ',' or ']', but got '<stream end>'"),
    ("- learner", "found a list, allowed: a mapping"),
    ("shapes", "found a text, allowed: a mapping"),
    (
        "learner:\n  lr: 1e-4\n  steps: 5\n  lr: 2e-4\n",
        'line 4, column 3: found duplicate key "lr"; allowed: once',
    ),
    (
        "device: cpu\nlearner: {lr: 1e-4}\n'device': auto\n",
        'line 3, column 1: found duplicate key "device"; allowed: once',
    ),
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
    message = (
        f"config {tmp_path / 'none.yaml'}: no such file or recipe; allowed: a YAML file or one of "
    )
    assert str(caught.value).startswith(message)
    file = tmp_path / "picture.yaml"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(
        ConfigError, match=r"picture.yaml: not UTF-8 \(invalid start byte at byte 0\)$"
    ):
        load_config(file)


def test_an_empty_file_still_needs_data(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^data\.source: missing"):
        load_config(file)


def test_a_whole_number_may_have_an_exponent() -> None:
    config = load_config(DEMO, ["learner.steps=1e3", "data.pixel_area=[1e4, 65536]"])
    assert config.learner.steps == 1000 and config.data.pixel_area == [10000, 65536]
    with pytest.raises(ConfigError, match=r"^learner\.steps: 1e-1, allowed: a whole number$"):
        load_config(DEMO, ["learner.steps=1e-1"])


def test_shown_values_keep_everything_but_secrets() -> None:
    text = 'https://h/?token=abc&a="b" and {more}'
    config = load_config(DEMO)
    config.run.__dict__["name"] = text  # the door refuses it; an older run may hold it
    values = shown_values(config)
    assert values["run"]["name"] == 'https://h/?token=***&a="b" and {more}'
    assert values["learner"]["steps"] == 80


def test_no_value_is_guessed_from_its_looks() -> None:
    words = ["preflight.mode=off", "model.revision=7e12345", "run.name=nan", "data.source=2026"]
    config = load_config(DEMO, words)
    assert (config.preflight.mode, config.model.revision) == ("off", "7e12345")
    assert (config.run.name, config.data.source) == ("nan", "2026")
    assert parse_config(dump_config(config), "again.yaml") == config


def test_the_last_override_of_a_key_wins_and_scientific_notation_is_a_number() -> None:
    config = load_config(DEMO, ["learner.lr=1e-3", "learner.lr=2e-4", "lora.targets=[to_q, to_k]"])
    assert config.learner.lr == 2e-4
    assert config.lora.targets == ["to_q", "to_k"]


def test_pauses_before_restarts_double_up_to_a_minute() -> None:
    def pauses(wait: float) -> list[float]:
        learner = load_config("configs/shapes.yaml", [f"learner.restart_backoff_s={wait}"]).learner
        return [learner.pause_before(restart) for restart in (1, 2, 3, 30, 3000)]

    assert pauses(2.0) == [2.0, 4.0, 8.0, 60.0, 60.0]
    assert pauses(90.0) == [90.0] * 5
    assert pauses(0.0) == [0.0] * 5


def test_a_merged_key_may_be_given_again() -> None:
    text = "encoder: &small {workers: 2, cpus: 0.5}\nrollout: {<<: *small, cpus: 0.2}\n"
    config = parse_config(text + "data: {source: x}\n", "merged.yaml")
    assert (config.rollout.workers, config.rollout.cpus, config.encoder.cpus) == (2, 0.2, 0.5)


def test_a_run_that_stored_what_it_did_not_heed_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(written := load_config(DEMO)))
    assert "count: 100" in file.read_text() and stored_config(str(file)) == written
    assert load_config(file) == written, "defaults may be written out"
    file.write_text(file.read_text().replace("count: 100", "count: 50"))
    assert stored_config(str(file), ["data.token=sks"]).data.prior.count == 100
    for read in (load_config, lambda path: stored_config(str(path), ["data.prior.count=50"])):
        with pytest.raises(ConfigError, match=r"data.prior.count: 50 without data.prior.prompts"):
            read(file)
