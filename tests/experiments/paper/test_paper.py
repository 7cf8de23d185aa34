"""The paper's comparison: its configs, its arithmetic, its page; whole at tiny size by night."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dopsd.cli.main import main
from dopsd.config import dump_config
from dopsd.driver.monitoring.progress import Progress
from dopsd.errors import ConfigError
from dopsd.evaluation.metrics import METRICS as KNOWN
from dopsd.evaluation.results import Results, Row
from dopsd.evaluation.spec import MetricChoice
from dopsd.experiments.paper import page
from dopsd.experiments.paper.cost import GPU_FLOPS, Cost, training_cost
from dopsd.experiments.paper.rows import ROWS, config_of, rows_of
from dopsd.experiments.paper.run import METRICS, PAGE, PaperRun, is_trained, reproduce_paper
from dopsd.intervals import Value
from dopsd.models import FAMILIES
from tests.evaluation.conftest import clip_folder, vlm_folder
from tests.evaluation.tiny import SIDE, image_processor
from tests.helpers.loras import ups
from tests.helpers.tiny import random_image

__all__ = ["clip_folder", "vlm_folder"]
TINY = (
    *("model.base=shapes", "model.vlm=null", "model.dtype=float32", "device=cpu"),
    "data.pixel_area=1024",
    *("data.bucket_multiple=4", "context.image_min_pixels=16384"),
    *("context.image_max_pixels=16384", "lora.rank=4", "lora.alpha=8", "encoder.cpus=0.2"),
    *("learner.workers=1", "learner.cpus=0.5", "learner.steps=1", "learner.global_batch=2"),
    *("learner.micro_batch=2", "learner.gradient_checkpointing=false"),
)


def test_rows_share_everything_but_objective_teacher_and_adapter():
    base, *others = (config_of(row, "x", "f", "a.safetensors", ()).model_dump() for row in ROWS)
    assert base["learner"]["steps"] == 2000 and base["lora"]["rank"] == 64, "as the authors ran it"
    for row, other in zip(ROWS[1:], others):
        changed = {
            f"{section}.{key}"
            for section, values in base.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != other[section][key]
        }
        assert changed - {"model.merge"} == {"run.name", "run.folder", "method.objective"}
        assert other["model"]["merge"] == (["a.safetensors"] if row.on_adapter else [])
    assert [row.name for row in rows_of(None)] == ["dopsd", "sft"]


def test_gpu_hours_are_what_the_line_says():
    configs = [config_of(row, "x", "f", None, TINY) for row in rows_of(None)]
    ours, sft = map(training_cost, configs)
    # 4 states: forward and backward, of D-OPSD the teacher's forward too.
    assert (ours.forwards, sft.forwards, ours.samples) == (16, 12, 2)
    kept = config_of(ROWS[0], "x", "f", None, [*TINY, "learner.gradient_checkpointing=true"])
    assert training_cost(kept).forwards == 20
    assert ours.forward_flops == sft.forward_flops > 0
    cost = Cost(forwards=20, forward_flops=GPU_FLOPS, samples=360)
    assert cost.hours == pytest.approx(2) and str(cost).endswith("= 2.0 GPU hours")


def test_the_page_has_the_papers_figures_beside():
    value = Value(0.3, 0.2, 0.4)
    rows = [
        Row(model, 8, group, False, 5, 5, {"clip_s": value, "judge_same": value})
        for model in ("base", "dopsd", "sft")
        for group in ("cat", "dog")
    ]
    columns = {name: column for kind in KNOWN.values() for name, column in kind.columns.items()}
    columns = {name: columns[name] for name in ("clip_s", "judge_same")}
    results = Results(rows, [], columns, {"dino": "dino: not here"})
    text = page.markdown(rows_of(None), results, {"all": Cost(1, 1.0, 1)}, METRICS, None)
    assert "| D-OPSD | 0.300 [0.200, 0.400] | 0.300 [0.200, 0.400] |" in text
    assert "| D-OPSD | 0.366 | 3.8 |" in text and "| SFT | 0.31 | 2.42 |" in text
    assert "| base, not tuned | 0.304 |  |" in text and "arXiv 2605.05204" in text
    assert "- dino: not here" in text and "no `--adapter` was given" in text


def test_a_metric_that_is_not_the_papers_and_a_row_of_other_settings_are_refused(tmp_path, capsys):
    with pytest.raises(
        ConfigError, match=r"^--metric: 'oracle', allowed: clip, dino, lpips, judge"
    ):
        PaperRun("x", "f", metrics=(MetricChoice("oracle"),)).chosen_metrics()
    config = config_of(ROWS[0], "x", str(tmp_path), None, TINY)
    assert not is_trained(config)
    run = tmp_path / "runs" / "dopsd"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    assert not is_trained(config), "begun, not finished"
    config.learner.lr = 1e-3
    with pytest.raises(ConfigError, match=r"dopsd was trained with learner\.lr="):
        is_trained(config)


def test_the_command_says_its_hours_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "paper", "--concept", "x", "--cost", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["training, D-OPSD", "training, SFT"]
    assert all(line.endswith("GPU hours") for line in lines) and not list(tmp_path.iterdir())


@pytest.fixture
def dino_folder(tmp_path: Path) -> Path:
    """The paper's class, DINOv3, at tiny size."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = DINOv3ViTConfig(**size, num_attention_heads=2, image_size=SIDE, patch_size=14)
    DINOv3ViTModel(config).save_pretrained(tmp_path / "dino")
    image_processor().save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


@pytest.mark.nightly
@pytest.mark.integration
def test_it_trains_draws_judges_and_goes_on(
    ray_cluster, tmp_path: Path, clip_folder, dino_folder, vlm_folder
):
    concept = tmp_path / "images" / "cat"
    concept.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(random_image(32, 32, number)).save(concept / f"{number}.png")
        (concept / f"{number}.txt").write_text(f"a photo of [V] cat number {number}")
    name = "layers.0.attention.to_q"
    linear = FAMILIES["z_image"]("shapes").skeleton().get_submodule(name)
    adapter = {
        f"transformer.{name}.lora_A.weight": torch.randn(2, linear.in_features),
        f"transformer.{name}.lora_B.weight": torch.randn(linear.out_features, 2),
    }
    save_file(adapter, tmp_path / "adapter.safetensors")
    models = {"clip": clip_folder, "dino": dino_folder, "judge": vlm_folder}
    asked = PaperRun(
        str(tmp_path / "images"),
        str(tmp_path / "paper"),
        f"{tmp_path}/adapter.safetensors@0.5",
        tuple(MetricChoice(metric, str(folder)) for metric, folder in models.items()),
        prompt_vlm=None,
        steps=4,
        overrides=TINY,
    )
    titles: list[str] = []

    def begin(title: str) -> Progress:
        titles.append(title)
        return Progress()

    text = reproduce_paper(asked, begin)
    trained = [f"training, {row.title}" for row in ROWS]
    assert titles == ["metrics", *trained, "evaluation"]
    for row in ROWS:
        lora = tmp_path / "paper" / "runs" / row.name / "lora.safetensors"
        assert max(ups(lora).values()) > 0 and f"| {row.title} | " in text
    results = json.loads((tmp_path / "paper" / "paper.json").read_text())
    assert {"clip_s", "dino", "judge_same"} <= set(results["columns"])
    titles.clear()
    assert reproduce_paper(asked, begin) == text == (tmp_path / "paper" / PAGE).read_text()
    assert titles == ["metrics", "evaluation"]
