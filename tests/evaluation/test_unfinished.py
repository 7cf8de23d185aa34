"""A LoRA of a run that is not at its end: of which step it is, or how to get one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dopsd.checkpoint.folder import write_checkpoint
from dopsd.config import dump_config
from dopsd.errors import ConfigError
from dopsd.evaluation.evaluated_models import as_trained, evaluated_models
from tests.helpers.tiny import make_config

RECIPE = {"dopsd.recipe": "dopsd K=4 lr=0.0002 steps=8 global_batch=8"}


def lora_of(run: Path, steps: int) -> Path:
    run.mkdir()
    config = make_config("base", run={"folder": str(run)}, learner={"steps": steps})
    (run / "config.yaml").write_text(dump_config(config))
    save_file({"a": torch.zeros(1)}, run / "lora.safetensors", RECIPE)
    return run


@pytest.mark.parametrize(
    ("steps", "finished", "said"),
    [(24, False, "its LoRA is that of step 8 of 24"), (8, False, ""), (24, True, "")],
)
def test_the_step_of_a_run_that_goes_on_is_told(tmp_path, capsys, steps, finished, said) -> None:
    run = lora_of(tmp_path / "run", steps)
    if finished:
        (run / "summary.json").write_text("{}")
    for given in (run, run / "lora.safetensors"):
        (model,) = map(as_trained, evaluated_models([str(given)]))
        assert model.loras == (str(run / "lora.safetensors"),)
        told = capsys.readouterr().err
        assert (said in told) if said else told == ""


def test_a_run_without_one_says_what_is_saved(tmp_path: Path) -> None:
    run = lora_of(tmp_path / "a run", 24)
    (run / "lora.safetensors").unlink()
    (model,) = evaluated_models([str(run)])
    with pytest.raises(ConfigError, match=r"the run is not finished; allowed: a run that has"):
        as_trained(model)
    options = {"policy_versions": (), "config": {}, "data": "f", "plan": "p", "learners": 1}
    write_checkpoint(str(run / "checkpoints"), {"student.safetensors": b"s"}, step=4, **options)
    way = rf"step 4 is saved: dopsd export '{run}' --which step-4 --out FILE.safetensors"
    with pytest.raises(ConfigError, match=way):
        as_trained(model)
