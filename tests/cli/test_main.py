"""The command line: one line for a user's mistake, and what each light command prints."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from dopsd.cli.main import app, main
from dopsd.cli.run.train import next_command
from dopsd.config import RunConfig, load_config
from dopsd.evaluation.drawn_with import WeightedLora
from dopsd.evaluation.generate import sample
from dopsd.export import lora_file
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from tests.helpers.tiny import make_transformer, random_state


def test_config_prints_what_reads_back_to_the_same(capsys, tmp_path):
    assert main(["config", "configs/shapes.yaml", "learner.lr=2e-4"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["learner"]["lr"] == 2e-4
    (tmp_path / "again.yaml").write_text(printed)
    again = load_config(tmp_path / "again.yaml")
    assert again == load_config("configs/shapes.yaml", ["learner.lr=2e-4"])


def test_reference_names_every_key_with_a_meaning(capsys):
    assert main(["config", "--reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    described = {row.split("`")[1] for row in rows if not row.endswith("| None |")}

    def keys(model, prefix=""):
        for name, entry in model.model_fields.items():
            if isinstance(entry.annotation, type) and hasattr(entry.annotation, "model_fields"):
                yield from keys(entry.annotation, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert described == set(keys(RunConfig))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "configs/shapes.yaml", "learner.lrr=1"], "dopsd: learner.lrr: unknown key"),
        (["train", "no.yaml"], "dopsd: config no.yaml: no such file"),
        (["prepare", "configs/shapes.yaml", "data.rows_per_group=0"], "dopsd: data.rows_per_group"),
        (["train", "configs/shapes.yaml", "learner.deepspeed=zero9"], "dopsd: learner.deepspeed: "),
        (["train", "configs/shapes.yaml", "model.base=./nowhere"], "dopsd: model.base: './nowhe"),
        (["train", "configs/shapes.yaml", "model.vlm=./nowhere"], "dopsd: model.vlm: './nowhere"),
        (["generate", "x", "--base", "./nowhere"], "dopsd: --base: './nowhere' is no folder"),
        (["generate", "x", "--family", "flux2_klein"], "dopsd: --base: /"),
        (["evaluate", "--base", "./nowhere", "--prompts", "shapes:bars"], "dopsd: base: './nowh"),
        (["generate", "x", "--dtype", "float8"], "dopsd: --dtype: 'float8', allowed: float32"),
        (["generate", "x", "--lora", "no.safetensors"], "dopsd: no.safetensors: no such LoRA"),
        (["generate", "x", "--width", "33"], "dopsd: image of 33x32 pixels"),
        (["stats", "nowhere"], "dopsd: nowhere/summary.json: missing"),
        (
            ["reproduce", "shapes", "--concept", "hat"],
            "dopsd: --concept: 'hat', allowed: bars, ring",
        ),
        (
            ["reproduce", "shapes", "--row", "sfd"],
            "dopsd: --row: 'sfd', allowed: dopsd, dopsd-ema09, ",
        ),
        (["reproduce", "shapes", "--lr", "0"], "dopsd: --lr: 0, allowed: more than 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(arguments, line, capsys):
    assert main(arguments) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith(line), printed


def test_unknown_commands_are_usage_errors(capsys):
    assert main(["trian"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_a_shell_completes_commands():
    asked = {"_DOPSD_COMPLETE": "complete_bash", "COMP_WORDS": "dopsd pre", "COMP_CWORD": "1"}
    answer = CliRunner().invoke(app, prog_name="dopsd", env=asked)
    assert sorted(answer.stdout.split()) == ["preflight", "prepare"]


def test_generate_draws_with_and_without_a_lora(tiny_base, tmp_path, capsys):
    family = FAMILIES["z_image"](str(tiny_base))
    transformer = family.load_transformer(torch.float32, "cpu")
    inject(transformer, resolve_targets(transformer, "default", family.lora_targets), 4, 8, 0)
    state = random_state(adapter_parameters(transformer, STUDENT), 1)
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(lora_file(state, 4, 8, {}))
    size = ["--width", "16", "--height", "32", "--base", str(tiny_base), "--steps", "2"]
    drawn = []
    for extra in ([], ["--lora", str(lora)]):
        out = tmp_path / f"out{len(extra)}"
        assert main(["generate", "a red cat", "a mat", *size, "--out", str(out), *extra]) == 0
        told = capsys.readouterr()
        assert "001.png  a mat" in told.out and "Loading" not in told.err
        drawn.append(Image.open(out / "000.png"))
    assert drawn[0].size == (16, 32)
    assert drawn[0].tobytes() != drawn[1].tobytes()
    # Base, family and steps are what the file says; two halves are the whole.
    said = {"dopsd.base": str(tiny_base), "dopsd.family": "z_image", "dopsd.recipe": "dopsd K=2 x"}
    lora.write_bytes(lora_file(state, 4, 8, said))
    words = ["generate", "ein \u00dc", "--seed", "3", *size[:4], "--out", str(tmp_path / "said")]
    for weights in (["@1"], ["@0.5", "@0.5"]):
        asked = [word for weight in weights for word in ("--lora", f"{lora}{weight}")]
        assert main([*words, *asked]) == 0
        drawn.append(Image.open(tmp_path / "said" / "000.png").convert("RGB"))
    with Image.open(tmp_path / "said" / "000.png") as picture:
        picture.load()
        texts = {key: picture.info[key] for key in ("prompt", "seed", "steps", "lora")}
    halves = "lora.safetensors@0.5 lora.safetensors@0.5"
    assert texts == {"prompt": "ein \u00dc", "seed": "3", "steps": "2", "lora": halves}
    whole, parts = (np.asarray(picture, dtype=int) for picture in drawn[2:])
    assert np.abs(whole - parts).max() <= 2
    for weight in ("nan", "1e3"):
        assert main(["generate", "x", "--lora", f"{lora}@{weight}"]) == 1
        assert "allowed: FILE or FILE@weight" in " ".join(capsys.readouterr().err.split())


def test_generate_draws_with_a_transformer_on_s3(tiny_base, tmp_path, bucket):
    other = make_transformer(seed=1)
    other.save_pretrained(tmp_path / "transformer", max_shard_size="200KB")
    for path in (tmp_path / "transformer").iterdir():
        storage.write_bytes(f"{bucket}/cli/transformer/{path.name}", path.read_bytes())
    size = ["--width", "16", "--height", "32", "--base", str(tiny_base), "--steps", "1"]
    family = FAMILIES["z_image"](str(tiny_base))
    pipeline = family.load_pipeline(torch.float32, "cpu")
    pipeline.transformer = other
    noise = torch.Generator("cpu").manual_seed(0)
    expected = sample(family, pipeline, ["a mat"], 1, 32, 16, generator=noise)[0]
    for folder in (str(tmp_path / "transformer"), f"{bucket}/cli/transformer"):
        out = str(tmp_path / "out")
        assert main(["generate", "a mat", *size, "--out", out, "--transformer", folder]) == 0
        assert Image.open(tmp_path / "out" / "000.png").tobytes() == expected.tobytes()


def test_a_folder_without_a_transformer_is_refused(tmp_path, capsys):
    assert main(["generate", "x", "--transformer", str(tmp_path)]) == 1
    assert "expected a folder with a ZImageTransformer2DModel" in capsys.readouterr().err


def test_the_next_command_names_the_revision_that_was_trained():
    names = ["model.base=owner/name", "model.revision=v2", "data.source=x"]
    run = load_config("configs/shapes.yaml", names)
    words = shlex.split(next_command(run, "run/lora.safetensors", None, None))
    assert words[words.index("--revision") + 1] == "v2"
    assert words[words.index("--lora") + 1] == "run/lora.safetensors"
    assert "--revision" not in next_command(load_config("configs/shapes.yaml"), None, None, None)


def test_the_next_command_draws_with_what_the_run_was_drawn_with():
    few = ["model.merge=[few.safetensors@0.5]", "preview.prompts=['-- a cat']"]
    run = load_config("configs/shapes.yaml", [*few, "model.draw_merged=true"])
    words = shlex.split(next_command(run, "run/lora.safetensors"))
    assert words[-2:] == ["--", "-- a cat"]
    loras = [words[at + 1] for at, word in enumerate(words) if word == "--lora"]
    assert loras == ["run/lora.safetensors", "few.safetensors@0.5"]
    apart = load_config("configs/shapes.yaml", few)
    assert "few" not in next_command(apart, "run/lora.safetensors")


def test_the_next_command_asks_for_what_was_trained():
    ring = load_config("configs/shapes.yaml", ["data.source=shapes:ring"])
    own = load_config("configs/shapes.yaml", ["data.source=my-images"])
    assert "'a red [V] on teal'" in next_command(ring, None, None, None)
    assert "'your prompt'" in next_command(own, None, None, None)


def test_generate_takes_a_run_folder(tmp_path, capsys, monkeypatch):
    """And what its run trained beside the LoRA."""
    asked = []
    monkeypatch.setattr(
        "dopsd.evaluation.generate.generate", lambda *given: asked.append(given) or iter(())
    )
    for name in ("lora.safetensors", "modules.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert main(["generate", "x", "--lora", str(tmp_path)]) == 0
    assert asked[0][2] == [WeightedLora(f"{tmp_path}/lora.safetensors")]
    assert asked[0][-3] == f"{tmp_path}/modules.safetensors"


def test_generate_asks_for_the_revision(capsys, monkeypatch):
    asked = {}

    def download(name, file, revision=None):
        asked[name, file] = revision
        raise OSError("not at hand")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert main(["generate", "x", "--base", "owner/name", "--revision", "v2"]) == 1
    assert asked == {("owner/name", "model_index.json"): "v2"}


def test_a_lora_that_fits_nothing_is_refused(tiny_base, tmp_path, capsys):
    from safetensors.torch import save
    from torch import ones

    foreign = tmp_path / "foreign.safetensors"
    parts = {"lora_A": ones(4, 64), "lora_B": ones(64, 4)}
    names = {f"base_model.model.layers.0.attention.to_q.{k}.weight": v for k, v in parts.items()}
    foreign.write_bytes(save(names))
    size = ["--width", "16", "--height", "16", "--base", str(tiny_base)]
    assert main(["generate", "x", *size, "--lora", str(foreign)]) == 1
    assert "none of its keys fits the base" in capsys.readouterr().err
