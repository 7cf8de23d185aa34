"""What may differ when a run is resumed, and how the rest is refused."""

from __future__ import annotations

import pytest

from dopsd.checkpoint.compatibility import RunIdentity, incompatibility
from dopsd.checkpoint.folder import CheckpointManifest
from dopsd.config import load_config
from dopsd.config.load import shown_values

SAME = RunIdentity("data", "plan")


def manifest(overrides=(), step: int = 40) -> CheckpointManifest:
    config = load_config("configs/shapes.yaml", list(overrides))
    return CheckpointManifest(
        step=step,
        policy_versions=(),
        config=shown_values(config),
        data="data",
        plan="plan",
        learners=2,
        written=0.0,
        files={},
    )


@pytest.mark.parametrize(
    "override",
    [
        "learner.workers=1",
        "learner.min_workers=1",
        "learner.deepspeed=zero3",
        "learner.steps=400",
        "rollout.workers=4",
        "encoder.workers=2",
        "learner.gradient_checkpointing=2",
        "inference.shared=true",
        "run.folder=elsewhere",
        "checkpoint.every_steps=1",
        "timeouts.step=3",
        "trackers=[]",
        "preview.samples=0",
    ],
)
def test_harmless_keys_may_change(override):
    assert incompatibility(load_config("configs/shapes.yaml", [override]), manifest(), SAME) is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.lr=1e-3", "learner.lr: 0.001, the checkpoint has 0.0005"),
        ("run.seed=4", "run.seed: 4, the checkpoint has 0"),
        ("max_policy_lag=2", "max_policy_lag: 2, the checkpoint has 1"),
        ("learner.global_batch=12", "learner.global_batch: 12, the checkpoint has 8"),
        ("method.ema_decay=0.9", "method.ema_decay: 0.9, the checkpoint has 0.9999"),
        ("model.dtype=bfloat16", "model.dtype: bfloat16, the checkpoint has float32"),
        ("model.quantize=int8", "model.quantize: int8, the checkpoint has none"),
        ("encoder.quantize=fp8", "encoder.quantize: fp8, the checkpoint has none"),
        ("lora.rank=8", "lora.rank: 8, the checkpoint has 16"),
        ("learner.steps=20", "learner.steps: 20, the checkpoint has 80"),
    ],
)
def test_harmful_keys_are_refused_with_both_values(override, line):
    assert incompatibility(load_config("configs/shapes.yaml", [override]), manifest(), SAME) == line


def test_a_cosine_cannot_be_lengthened():
    cosine = ["learner.schedule=cosine"]
    longer = load_config("configs/shapes.yaml", [*cosine, "learner.steps=90"])
    assert (
        incompatibility(longer, manifest(cosine), SAME)
        == "learner.steps: 90, the checkpoint has 80"
    )


def test_sampler_steps_that_drew_the_prior_may_not_change():
    prior = ["data.prior.prompts=prior.txt"]
    changed = load_config("configs/shapes.yaml", [*prior, "preview.steps=8"])
    assert (
        incompatibility(changed, manifest(prior), SAME)
        == "preview.steps: 8, the checkpoint has None"
    )
    own = [*prior, "data.prior.steps=4"]
    changed = load_config("configs/shapes.yaml", [*own, "preview.steps=8"])
    assert incompatibility(changed, manifest(own), SAME) is None


def test_other_data_and_another_plan_are_refused():
    config = load_config("configs/shapes.yaml")
    line = incompatibility(config, manifest(), RunIdentity("other", "plan"))
    assert line == "data: the shards give other, the checkpoint has data"
    line = incompatibility(config, manifest(), RunIdentity("data", "other"))
    assert line == "plan: the shards give other, the checkpoint has plan"


def test_keys_that_another_version_did_not_know_stand_at_their_default():
    older = manifest()
    del older.config["learner"]["eps"]
    assert incompatibility(load_config("configs/shapes.yaml"), older, SAME) is None
    changed = load_config("configs/shapes.yaml", ["learner.eps=1e-6"])
    assert incompatibility(changed, older, SAME) == "learner.eps: 1e-06, the checkpoint has 1e-08"


def test_files_that_a_run_begins_with_are_compared_by_content() -> None:
    def overrides(path: str, digest: str, scale: float = 0.5) -> list[str]:
        merged = f'model.merge=["{path}@{scale}"]'
        own = [f"lora.init={path}", f"lora.init_sha256='{digest * 64}'"]
        return [merged, f"model.merge_sha256=['{digest * 64}']", *own]

    def line(now: list[str], then: list[str]) -> str | None:
        return incompatibility(load_config("configs/shapes.yaml", now), manifest(then), SAME)

    before = overrides("/a", "1")
    assert line(before, before) is None
    assert line(overrides("/moved", "1"), before) is None
    told = "lora.init: /a (sha256 222222222222), the checkpoint has /a (sha256 111111111111)"
    assert line(overrides("/a", "2"), before) == told
    told = "model.merge: ['/a@0.5 (sha256 222222222222)'], the checkpoint has"
    assert str(line(overrides("/a", "2")[:2], before[:2])).startswith(told)
    assert str(line(overrides("/a", "1", 1.0), before)).startswith("model.merge: ['/a@1.0 (sha")
    assert str(line([], before)).startswith("lora.init: None, the checkpoint has /a")
    older = before[::2]  # of a dopsd that knew no digests
    assert line(before, older) is None
    assert line(overrides("/moved", "1"), older) == "lora.init: /moved, the checkpoint has /a"
