"""Runs of a comparison that are damaged or somebody else's: named before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dopsd.config import dump_config
from dopsd.driver.monitoring.progress import Progress
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import ConfigError, DataError
from dopsd.experiments.paper.run import PaperRun, reproduce_paper
from dopsd.experiments.reproduce import shapes
from dopsd.experiments.reproduce.variants import FULL, VARIANTS, Trial, config_of, run_of
from dopsd.ownership.ownership import OwnedFolder

QUICK = shapes.Comparison(
    VARIANTS[:1], ("bars",), range(1), (5e-4,), replace(FULL, steps=1), prompts=3
)


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(shapes, "connect", start)
    monkeypatch.setattr("dopsd.experiments.paper.run.train", start)


def _begun(tmp_path: Path, rate: float = 5e-4, seed: int = 0) -> Path:
    """A run of the comparison, finished to all appearance."""
    OwnedFolder(str(tmp_path), "comparison", "--folder").claim("runs/")
    trial = Trial(VARIANTS[0], "bars", seed, rate)
    run = Path(run_of(trial, str(tmp_path)))
    run.mkdir(parents=True)
    config = with_absolute_paths(config_of(trial, QUICK.budget, str(tmp_path)))
    (run / "config.yaml").write_text(dump_config(config))
    (run / "summary.json").write_text('{"seconds": 3.0}')
    (run / "lora.safetensors").write_bytes(b"")
    return run


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", b"learner: {lr: abc}", "learner.lr: 'abc', allowed: a number"),
        ("config.yaml", b"another: trainer's", "another: unknown key"),
        ("config.yaml", b"\x00\x00", "a NUL character"),
        ("summary.json", b'{"seco', "not JSON"),
        ("summary.json", b"{}", "seconds: missing"),
    ],
)
@pytest.mark.parametrize("tuned", [False, True])
def test_a_damaged_run_of_the_comparison_is_named_before_ray_starts(
    tmp_path: Path, no_start: None, name: str, content: bytes, said: str, tuned: bool
):
    run = _begun(tmp_path)
    (run / name).write_bytes(content)
    asked = replace(QUICK, rates=(1e-4, 5e-4)) if tuned else QUICK
    with pytest.raises((ConfigError, DataError)) as refused:
        shapes.reproduce(asked, str(tmp_path), lambda title: Progress())
    assert str(run / name) in str(refused.value) and said in str(refused.value)


def test_somebody_elses_folder_in_the_place_of_a_run_is_named_before_ray_starts(
    tmp_path: Path, no_start: None
):
    run = _begun(tmp_path)
    (run / "config.yaml").rename(run / "thesis.tex")
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match=rf"{run.name} holds 2 things that dopsd did not make"):
        shapes.reproduce(QUICK, str(tmp_path), lambda title: Progress())


def test_a_later_row_of_the_papers_comparison_is_looked_at_before_the_first_is_trained(
    tmp_path: Path, no_start: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dopsd.experiments.paper.run.resolve_models", lambda spec: spec)
    OwnedFolder(str(tmp_path), "paper", "--folder").claim("runs/")
    run = tmp_path / "runs" / "sft"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("learner: {steps: many}")
    asked = PaperRun("x", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        reproduce_paper(asked, lambda title: Progress())
    assert f"config {run}/config.yaml: learner.steps: many, allowed" in str(refused.value)
