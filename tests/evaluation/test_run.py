"""A whole evaluation on real Ray with a tiny pipeline: pictures, scores, resuming, errors."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dopsd.cli.main import main
from dopsd.data.pictures.images import encode_png
from dopsd.errors import ConfigError, DeadlineError, ModelError, ResourceError
from dopsd.evaluation.evaluated_models import evaluated_models
from dopsd.evaluation.prompts import EvalPrompt, shapes_prompts
from dopsd.evaluation.run import _image_sets, evaluate
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec, MetricChoice, resolve
from dopsd.evaluation.worker import EvaluationWorker, GeneratedImage
from dopsd.export import lora_file
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from tests.helpers.tiny import random_image, random_state

PROMPTS = (
    EvalPrompt("a red cat", "cat"),
    EvalPrompt("a blue mat", "cat"),
    EvalPrompt("a red mat on a cat", "cat"),
    EvalPrompt("a mat", "prior", prior=True),
)
SHARPNESS = MetricChoice("sharpness")


def save_lora(base: str, path: Path, seed: int) -> str:
    family = FAMILIES["z_image"](base)
    transformer = family.load_transformer(torch.float32, "cpu")
    inject(transformer, resolve_targets(transformer, "default", family.lora_targets), 4, 8, 0)
    state = random_state(adapter_parameters(transformer, STUDENT), seed)
    path.write_bytes(lora_file(state, 4, 8, {}))
    return str(path)


@pytest.fixture(scope="module")
def loras(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return [save_lora(str(tiny_base), folder / f"{n}.safetensors", n) for n in range(2)]


@pytest.fixture
def spec(ray_cluster, tiny_base, loras, tmp_path):
    return EvaluateSpec(
        str(tmp_path / "out"),
        PROMPTS,
        (
            EvaluatedModel("a", (loras[0],)),
            EvaluatedModel("b", (loras[1],)),
            EvaluatedModel("a+b", tuple(loras)),
        ),
        (SHARPNESS,),
        base=str(tiny_base),
        height=32,
        width=16,
        steps=(2,),
        batch=2,
        cpus=0.5,
        start_seconds=240.0,
        step_seconds=120.0,
    )


def pictures(out: str) -> dict[str, bytes]:
    """{"model-steps/picture": PNG bytes} without the fingerprints."""
    found = {}
    for path in sorted(Path(out, "pictures").rglob("*.png")):
        found[f"{path.parent.name.rpartition('-')[0]}/{path.name}"] = path.read_bytes()
    return found


def test_models_are_drawn_and_scored_and_an_interrupted_evaluation_goes_on(spec, dino_folder):
    spec = replace(spec, metrics=(SHARPNESS, MetricChoice("dino", str(dino_folder))))
    whole = evaluate(spec)
    drawn = pictures(spec.out)
    assert len(drawn) == 4 * len(PROMPTS)
    per_model = {
        name: [png for key, png in drawn.items() if key.startswith(f"{name}-2steps/")]
        for name in (BASE, "a", "b", "a+b")
    }
    for number in range(len(PROMPTS)):
        assert len({found[number] for found in per_model.values()}) == 4

    assert [(row.model, row.group, row.pictures) for row in whole.rows] == [
        (model, group, count)
        for model in (BASE, "a", "b", "a+b")
        for group, count in (("cat", 3), ("prior", 1))
    ]
    # Without references only a tuned model's prior pictures have a target: the base's.
    assert {(r.model, r.group) for r in whole.rows if "dino" in r.values} == {
        (model, "prior") for model in ("a", "b", "a+b")
    }
    retention = {(r.model, r.against) for r in whole.relatives if r.group == "prior"}
    stacked = {(r.model, r.against) for r in whole.relatives if r.group == "cat"}
    assert retention == {("a", BASE), ("b", BASE), ("a+b", BASE)}
    assert stacked == {("a+b", "a"), ("a+b", "b")}
    assert Path(spec.out, "results.json").read_text() == whole.to_json()
    assert Path(spec.out, "results.md").read_text() == whole.markdown()

    # As if it had been killed: some pictures and some scores are not there.
    paths = sorted(Path(spec.out, "pictures").rglob("*.png"))
    for path in paths[::3]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    shutil.rmtree(next(Path(spec.out, "scores").glob("dino-*")))
    seen = []
    again = evaluate(spec, lambda phase, status: seen.append((phase, status)))
    assert again == whole and pictures(spec.out) == drawn
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert ("draw", f"{len(kept)} of {len(paths)} pictures") in seen
    assert ("score", "dino: 16 pictures measured now, 16 in all") in seen
    assert not any("sharpness:" in message for _, message in seen)


def test_another_setting_is_drawn_anew_and_never_mixed(spec, loras):
    spec = replace(spec, models=(EvaluatedModel("a", (loras[0],)),))
    first = evaluate(spec)
    other = replace(spec, models=(EvaluatedModel("a", (loras[1],)),), seeds=(0, 1))
    seen = []
    second = evaluate(other, lambda phase, status: seen.append(status))
    # The base's four pictures of seed 0 are the same; everything else is new.
    assert "4 of 16 pictures" in seen
    assert first.row(BASE, "cat").values["sharpness"] != second.row(BASE, "cat").values["sharpness"]
    assert first.row("a", "cat").values["sharpness"] != second.row("a", "cat").values["sharpness"]
    assert len(list(Path(spec.out, "pictures").iterdir())) == 3
    assert evaluate(spec) == first


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers", "peft"])
def test_pictures_of_another_library_version_are_never_mixed(spec, library, monkeypatch):
    def folder() -> str:
        return _image_sets(resolve(replace(spec, models=())), "cpu", {})[0].folder

    before = folder()
    monkeypatch.setattr(
        "dopsd.evaluation.run.version", lambda name: "99" if name == library else version(name)
    )
    assert folder() != before


def test_noise_depends_on_seed_and_prompt_alone_and_the_output_may_be_on_s3(spec, bucket):
    spec = replace(spec, models=())
    evaluate(spec)
    whole = pictures(spec.out)
    alone = replace(spec, prompts=(PROMPTS[2],), out=f"{bucket}/evaluation", batch=1)
    results = evaluate(alone)
    assert storage.read_bytes(f"{alone.out}/results.json").decode() == results.to_json()
    (path,) = (each for each, _ in storage.list_files(alone.out) if each.endswith(".png"))
    (png,) = (each for name, each in whole.items() if path.endswith(name.rpartition("/")[2]))
    difference = [
        np.asarray(Image.open(io.BytesIO(each))).astype(int)
        for each in (png, storage.read_bytes(storage.join(alone.out, path)))
    ]
    assert abs(difference[0] - difference[1]).max() <= 1
    seen = []
    assert evaluate(alone, lambda phase, status: seen.append(status)) == results
    assert seen[0] == "1 of 1 pictures"


def test_references_are_what_pictures_are_held_against(spec, dino_folder, tmp_path):
    choice = MetricChoice("dino", str(dino_folder))
    spec = replace(
        spec, models=(), prompts=(PROMPTS[0], EvalPrompt("a red dog", "dog")), metrics=(choice,)
    )
    evaluate(spec)  # draws; nothing to compare with
    (itself,) = Path(spec.out, "pictures").rglob(PROMPTS[0].image_name(0))
    other = tmp_path / "other.png"
    Image.fromarray(random_image(32, 16, 5)).save(other)
    held = tuple(
        replace(prompt, references=(str(path),))
        for prompt, path in zip(spec.prompts, (itself, other), strict=True)
    )
    results = evaluate(replace(spec, prompts=held))
    assert results.row(BASE, "cat").values["dino"].value == pytest.approx(1, abs=1e-5)
    assert results.row(BASE, "dog").values["dino"].value < 0.9999


def test_references_are_opened_as_training_opens_them(tiny_base: Path) -> None:
    """Turned by EXIF, or transparent: a reference is what a person sees of it."""
    worker = EvaluationWorker(EvaluateSpec("out", PROMPTS, base=str(tiny_base)), "cpu")
    pixels = random_image(32, 16, 5)
    pixels[:8] = 255
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(pixels)).save(turned, "PNG", exif=exif)
    alpha = np.full((32, 16, 1), 255, np.uint8)
    alpha[:8] = 0
    hidden = np.where(alpha == 0, 0, pixels).astype(np.uint8)
    Image.fromarray(np.concatenate([hidden, alpha], -1)).save(clear, "PNG")
    drawn = encode_png(Image.fromarray(pixels))
    for payload in (turned.getvalue(), clear.getvalue()):
        shown = [GeneratedImage(drawn, PROMPTS[0], ("x",))]
        choice = MetricChoice("latent", str(tiny_base))
        assert worker.score(choice, shown, {"x": payload}) == [{"latent": 0.0}]


def test_a_reference_that_cannot_be_opened_is_one_line(spec, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"GIF89a, or not")
    prompts = (replace(PROMPTS[0], references=(str(path),)),)
    with pytest.raises(ConfigError, match=rf"^reference {path}: broken image: "):
        evaluate(replace(spec, prompts=prompts))


def test_missing_weights_are_announced_and_the_rest_is_measured(spec, dino_folder, tmp_path):
    # One is plainly missing; the other is found out when it is loaded.
    (tmp_path / "clip").mkdir()
    shutil.copy(dino_folder / "config.json", tmp_path / "clip")
    spec = replace(
        spec,
        models=(),
        prompts=PROMPTS[:1],
        metrics=(
            MetricChoice("dino", "nobody/nothing"),
            MetricChoice("clip", str(tmp_path / "clip")),
            SHARPNESS,
        ),
    )
    results = evaluate(spec)
    assert results.columns.keys() == {"sharpness"}
    assert results.missing.keys() == {"dino", "clip"}
    assert re.search(r"^- dino: .*nobody/nothing: .*hub", results.markdown(), re.MULTILINE)
    assert "- clip: " in results.markdown()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"prompts": ()}, ConfigError, "prompts: none"),
        ({"prompts": PROMPTS[:1] * 2}, ConfigError, "'a red cat': twice in the group 'cat'"),
        ({"steps": (0,)}, ConfigError, r"steps: \[0\], allowed: different numbers from 1"),
        ({"seeds": (1, 1)}, ConfigError, r"seeds: \[1, 1\]"),
        ({"width": 17}, ModelError, "image of 17x32 pixels"),
        ({"models": (EvaluatedModel("x", ("no.safetensors",)),)}, ModelError, "no such LoRA file"),
        ({"metrics": (MetricChoice("fid"),)}, ConfigError, "metric 'fid': unknown"),
        ({"metrics": (SHARPNESS, SHARPNESS)}, ConfigError, "asked for twice"),
        ({"metrics": (MetricChoice("oracle"),)}, ConfigError, "'oracle': pictures of 16x32"),
        ({"base": "./nowhere"}, ModelError, "'./nowhere' is no folder"),
        ({"family": "flux"}, ConfigError, "family: 'flux', allowed: z_image"),
        ({"batch": 0}, ConfigError, "batch: 0, allowed: 1 or more"),
        (
            {"prompts": (EvalPrompt("a", references=("no.png",)),), "models": ()},
            ConfigError,
            "prompt 'a': no such reference no.png",
        ),
        ({"device": "cuda"}, ResourceError, "the cluster has no GPU"),
        ({"workers": 99, "start_seconds": 0.1}, ResourceError, "asked 49.5 CPU"),
    ],
)
def test_what_cannot_work_is_one_line(spec, change, kind, message):
    with pytest.raises(kind, match=message) as caught:
        evaluate(replace(spec, **change))
    assert len(str(caught.value).splitlines()) == 1


def test_names_and_groups_of_models_are_checked(spec, loras):
    twice = (EvaluatedModel("a", (loras[0],)), EvaluatedModel("a", (loras[1],)))
    with pytest.raises(ConfigError, match="model 'a': two of this name"):
        evaluate(replace(spec, models=twice))
    lost = (EvaluatedModel("a", (loras[0],), groups=("dog",)),)
    with pytest.raises(ConfigError, match="no prompts of the group 'dog', allowed: cat, prior"):
        evaluate(replace(spec, models=lost))


def test_a_file_that_is_no_lora_is_refused(spec, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"x.safetensors: not a safetensors file"):
        evaluate(replace(spec, models=(EvaluatedModel("x", (str(tmp_path / "x.safetensors"),)),)))


def test_a_lora_of_another_base_is_refused_before_anything_is_drawn(spec):
    layer = r"context_refiner\.0\.attention\.to_k"
    message = rf"0.safetensors: made for another base: its {layer} takes 64 features, here it takes"
    with pytest.raises(ModelError, match=message):
        evaluate(replace(spec, base="shapes", height=None, width=None))


def test_a_worker_that_does_not_start_in_time_is_named(spec):
    late = replace(spec, start_seconds=0.2, restarts=0)
    message = r"evaluation-0 timed out after .* while starting up for drawing 2 pictures of base"
    with pytest.raises(DeadlineError, match=message):
        evaluate(late)


def test_models_draw_their_own_groups_and_the_prior(spec, loras):
    prompts = (*PROMPTS[2:], EvalPrompt("a red dog", "dog"))
    models = (
        EvaluatedModel("a", (loras[0],), ("cat",)),
        EvaluatedModel("b", (loras[1],), ("dog",)),
    )
    results = evaluate(replace(spec, prompts=prompts, models=models))
    assert [(row.model, row.group) for row in results.rows] == [
        (BASE, "cat"),
        (BASE, "prior"),
        (BASE, "dog"),
        ("a", "cat"),
        ("a", "prior"),
        ("b", "prior"),
        ("b", "dog"),
    ]


def test_the_shapes_world_is_counted_by_the_oracle(spec):
    results = evaluate(
        replace(
            spec,
            base="shapes",
            models=(),
            metrics=(),
            prompts=shapes_prompts("bars", 3),
            height=None,
            width=None,
            steps=(4,),
            batch=6,
        )
    )
    bars, prior = results.rows
    assert (bars.group, bars.prompts, prior.group, prior.prompts) == ("bars", 3, "prior", 3)
    oracle = {"concept", "ok", "named", "palette_error", "contrast", "crisp"}
    assert {*oracle, "sharpness"} == bars.values.keys()
    assert prior.values["named"].value > 0.5 and "concept" not in prior.values


def test_the_command_line(spec, tiny_base, loras, tmp_path, capsys):
    run_folder = tmp_path / "runs" / "cat"
    run_folder.mkdir(parents=True)
    shutil.copy(loras[0], run_folder / "lora.safetensors")
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    (tmp_path / "prior.txt").write_text("a mat\n")
    out = str(tmp_path / "cli")
    size = ["--width", "16", "--height", "32", "--steps", "2", "--cpus", "0.5", "--stack"]
    models = ["--lora", str(run_folder), "--lora", f"dog={loras[1]}", "--base", str(tiny_base)]
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--prior", str(tmp_path / "prior.txt")]
    assert main(["evaluate", *size, *models, *files, "--metric", "sharpness", "--out", out]) == 0
    printed = capsys.readouterr().out
    for row in ("| base | 2 | prompts (1) |", "| cat |", "| dog |", "| cat+dog | 2 | prior (1) |"):
        assert row in printed
    assert f"Table: {out}/results.md" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--metric", "fid"], "dopsd: metric 'fid': unknown, allowed: oracle"),
        (["--lora", "no.safetensors"], "dopsd: no.safetensors: no such LoRA file"),
        (["--lora", "nowhere"], "dopsd: nowhere/lora.safetensors: no such LoRA file"),
        (["--stack"], "dopsd: --stack: 0 LoRAs, allowed: two or more"),
        (["--prompts", "no.txt"], "dopsd: prompts no.txt: no such file"),
        (["--prompts", "shapes:x"], "dopsd: prompts shapes:x: unknown concept"),
        (["--base", "a/b"], "dopsd: --prompts: missing"),
        (["--device", "tpu"], "dopsd: --device: 'tpu', allowed: auto, cpu, cuda"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(arguments, line, capsys):
    assert main(["evaluate", *arguments]) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith(line), printed


@pytest.mark.parametrize(
    ("given", "name", "path"),
    [
        ("s3://b/date=2024/run", "run", "s3://b/date=2024/run/lora.safetensors"),
        ("cat=s3://b/date=2024/run", "cat", "s3://b/date=2024/run/lora.safetensors"),
        ("./r=4/dog.safetensors", "dog", "./r=4/dog.safetensors"),
        ("cat=a.safetensors", "cat", "a.safetensors"),
        ("runs/dog/", "dog", "runs/dog/lora.safetensors"),
    ],
)
def test_a_path_may_hold_an_equals_sign(given, name, path):
    assert evaluated_models([given]) == (EvaluatedModel(name, (path,)),)
