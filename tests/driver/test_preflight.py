"""The preflight through real Ray: a teacher that sees, a blind one, and what training does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from dopsd.cli.main import main
from dopsd.config import RunConfig, load_config
from dopsd.data.run_data import prepared
from dopsd.driver import preflight
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import DeadlineError, WorkerError
from dopsd.models.pretrained import MissingWeights
from dopsd.ray_cluster.placement import Role
from dopsd.run_folder.jsonl import read_lines
from dopsd.run_folder.outputs import claim_shards, owned
from tests.evaluation.blind import BlindFactory
from tests.evaluation.metrics.test_metrics import image_processor
from tests.helpers.loras import ups
from tests.helpers.runs import quiet
from tests.helpers.tiny import make_config, random_image

pytestmark = pytest.mark.usefixtures("ray_cluster")

LEARNER = Role("learner", 2, 0.4, 0.0)


def demo(folder: Path, *overrides: str) -> RunConfig:
    return load_config("configs/shapes.yaml", [f"run.folder={folder}", *overrides])


@pytest.fixture(scope="module")
def seeing(ray_cluster, tmp_path_factory):
    """(config, what was found, what was shown) with the shipped base and its own encoder."""
    config = demo(tmp_path_factory.mktemp("seeing"))
    claim_shards(config)
    manifest = prepared(config, lambda status: None)
    shown: list[str] = []
    found = preflight.check(
        config, manifest, LEARNER, lambda phase, status: shown.extend(getattr(status, "lines", ()))
    )
    return config, found, shown


def test_a_teacher_that_sees_the_target_can_draw_it(seeing):
    config, found, shown = seeing
    verdict = found.verdict
    assert verdict.outcome == "closer", verdict.sentence()
    assert verdict.metric == "oracle" and (verdict.samples, verdict.noises) == (8, 2)
    assert verdict.student > 0.9, "the base has no word for bars"
    assert shown[0] == f"Preflight: {verdict.sentence()}"
    assert str(Path(config.run.folder) / "preflight" / "contact_sheet.png") in shown[1]
    assert found.framing.outcome == "kept" and found.framing.told == 8, found.framing.sentence()
    assert f"  framing        {found.framing.sentence()}" in shown


def test_the_files_hold_every_number_and_the_pictures(seeing):
    config, found, _ = seeing
    folder = Path(config.run.folder) / "preflight"
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"]["outcome"] == "closer"
    assert report["verdict"]["sentence"] == found.verdict.sentence()
    assert report["framing"]["sentence"] == found.framing.sentence()
    assert len(report["samples"]) == 8
    for sample in report["samples"]:
        student, teacher = sample["student_context"], sample["teacher_context"]
        prompt = f"{sample['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        picture = f"<|vision_start|>{'<|image_pad|>' * 16}<|vision_end|>"
        assert student["text"] == f"<|im_start|>user\n{prompt}"
        assert teacher["text"] == f"<|im_start|>user\n{picture}{prompt}"
        assert teacher["tokens"] == student["tokens"] + 18
        assert not student["truncated"] and not teacher["truncated"]
        assert len(sample["student"]) == len(sample["teacher"]) == len(sample["framing"]) == 2
    sheet = Image.open(folder / "contact_sheet.png")
    assert 3 * 192 < sheet.width < 4 * 192 and sheet.height > 8 * 192


def test_the_same_config_gives_the_same_numbers(seeing):
    config, found, _ = seeing
    manifest = prepared(config, lambda status: None)
    again = preflight.check(config, manifest, LEARNER, quiet)
    assert again.record() == found.record() and again.sheet == found.sheet


@pytest.mark.parametrize("metric", ["oracle", "latent"])
def test_a_teacher_that_does_not_see_it_is_no_closer(metric, seeing, tmp_path):
    shards = seeing[0].shards
    config = demo(tmp_path, f"preflight.metric={metric}", f"data.shards={shards}")
    manifest = prepared(config, lambda status: None)
    shown: list[str] = []
    found = preflight.check(
        config,
        manifest,
        LEARNER,
        lambda phase, status: shown.extend(getattr(status, "lines", ())),
        BlindFactory(config, "cpu"),
    )
    assert found.verdict.outcome == "no_closer" and found.verdict.closer == 0
    assert shown[0].startswith("WARNING: preflight: the teacher is NO closer")


def test_dino_may_be_a_folder_named_from_here(seeing, tmp_path, monkeypatch):
    settings = ["preflight.metric=dino", "preflight.model=dino", "preflight.samples=2"]
    config = demo(tmp_path / "run", f"data.shards={seeing[0].shards}", *settings)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, image_size=28)).save_pretrained(tmp_path / "dino")
    image_processor().save_pretrained(tmp_path / "dino")
    monkeypatch.chdir(tmp_path)  # the workers stand elsewhere
    config = with_absolute_paths(config)
    found = preflight.check(config, prepared(config, lambda status: None), LEARNER, quiet)
    assert found.verdict.metric == "dino" and found.verdict.samples == 2
    assert 0 < found.verdict.ratio < 2
    assert all(distance > 0 for sample in found.samples for distance in sample.teacher)


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory) -> Path:
    """A run on a random base, whose teacher can teach nothing; one caption is too long."""
    folder = tmp_path_factory.mktemp("recipe")
    for number in range(4):
        Image.fromarray(random_image(32, 32, number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red cat " * (20 if number == 2 else 1))
    config = make_config(
        tiny_base,
        context={"image_min_pixels": 4096, "image_max_pixels": 4096, "text_tokens": 40},
        data={"source": str(folder), "pixel_area": 1024, "bucket_multiple": 8},
        lora={"rank": 4, "alpha": 8},
        method={"steps": 2},
        source="fused",
        encoder={"cpus": 0.2},
        learner={"cpus": 0.5, "steps": 1, "global_batch": 2, "micro_batch": 2},
        preview={"samples": 0},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_strict_refuses_to_train_in_one_line_and_leaves_the_folder_free(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["train", str(recipe), f"run.folder={folder}", "preflight.mode=strict"]
    assert main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dopsd: preflight: the teacher is NO closer to the target than")
    assert "preflight.mode: strict" in lines[0]
    assert {path.name for path in folder.iterdir()} == {".dopsd.json", "shards", "preflight"}


@pytest.mark.integration
def test_warn_says_so_and_trains(recipe, tmp_path, capsys):
    """An objective in which the student rolls out nothing: only the teacher's workers have work."""
    folder = tmp_path / "run"
    taught = ["method.objective=off_policy", "method.off_policy_states=teacher"]
    workers = ["source=disaggregated", "teacher.cpus=0.2", "rollout.cpus=0.2"]
    assert main(["train", str(recipe), f"run.folder={folder}", *taught, *workers]) == 0
    printed = capsys.readouterr().out
    assert "WARNING: preflight: the teacher is NO closer to the target" in printed
    assert "WARNING: 1 of 4 student contexts are cut at 40 tokens: 2" in printed
    assert "Done: 1 steps" in printed
    assert (folder / "lora.safetensors").is_file()
    assert (folder / "preflight" / "report.json").is_file()
    assert max(ups(folder / "lora.safetensors").values()) > 0
    (line,) = read_lines(str(folder / "metrics.jsonl"))
    assert line["teacher_seconds"] > 0 and not any(key.startswith("rollout") for key in line)


def test_the_command_alone_lists_every_sample(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = [str(recipe), f"run.folder={folder}", "preflight.mode=off"]
    assert main(["preflight", *arguments]) == 0
    printed = capsys.readouterr().out
    assert r"<|im_start|>user\n<|vision_start|><|image_pad|> x4 <|vision_end|>a red cat" in printed
    assert printed.count("latent distance student") == 4
    assert "cut at 40" in printed
    assert not (folder / "config.yaml").exists()


def test_off_skips_and_takes_an_older_report_away(tmp_path):
    config = make_config("shapes", run={"folder": str(tmp_path)}, preflight={"mode": "off"})
    own = owned(str(tmp_path))
    own.claim("preflight/")
    own.write("preflight/report.json", b"{}")
    (tmp_path / "preflight" / "mine.txt").write_text("mine")
    # No manifest and no Ray task: nothing is read.
    preflight.before_training(config, None, LEARNER, quiet)
    assert [path.name for path in (tmp_path / "preflight").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", [DeadlineError, WorkerError, MissingWeights])
def test_a_check_that_cannot_be_made_stops_strict_runs_only(kind, tmp_path, monkeypatch):
    def fails(*arguments):
        raise kind("the reason")

    monkeypatch.setattr(preflight, "check", fails)
    shown = []

    def show(phase, status):
        shown.append(status.lines)

    config = make_config("shapes", run={"folder": str(tmp_path)})
    preflight.before_training(config, None, LEARNER, show)
    assert shown == [["WARNING: no preflight: the reason"]]
    config.preflight.mode = "strict"
    with pytest.raises(kind, match="the reason"):
        preflight.before_training(config, None, LEARNER, show)
