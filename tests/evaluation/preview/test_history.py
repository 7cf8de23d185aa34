"""Which adapters are kept, and that what is drawn from them is what the stock sampler draws."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from dopsd.data.sample import Sample
from dopsd.evaluation.generate import sample
from dopsd.evaluation.preview.history import sample_history
from dopsd.evaluation.preview.sampler import PreviewSampler
from dopsd.export import lora_file
from dopsd.method.noise import NoisePurpose, sample_noise
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, adapter_parameters, inject, resolve_targets
from dopsd.records import unpack
from dopsd.report.sheet import cut
from dopsd.run_folder.preview_files import (
    HISTORY,
    kept_versions,
    prompt_path,
    small_enough,
    strip_path,
)
from tests.helpers.tiny import make_config, random_image, random_state


@pytest.mark.parametrize(
    ("steps", "every", "samples", "versions"),
    [
        (80, 0, 4, [20, 40, 60]),
        (80, 30, 4, [30, 60]),
        (80, 0, 0, []),
        (80, 30, "prompts", [30, 60]),
        (2, 0, 4, [1]),
        (1, 0, 4, []),
        (4, 1, 1, [1, 2, 3]),
    ],
)
def test_quarters_of_the_run_or_every_n(steps, every, samples, versions):
    preview = {"prompts": ["a cat"], "samples": 0} if samples == "prompts" else {"samples": samples}
    config = make_config("base", learner={"steps": steps}, preview={"every": every, **preview})
    assert kept_versions(config) == versions


def test_large_weights_are_not_kept():
    config = make_config("base", model={"dtype": "bfloat16"}, preview={"max_weights_mb": 1})
    assert small_enough(config, 2**19)
    assert not small_enough(config, 2**19 + 1)


@pytest.fixture(scope="module")
def loras(tiny_base) -> list[bytes]:
    """Random ones of student and teacher."""
    family = FAMILIES["z_image"](str(tiny_base))
    transformer = family.load_transformer(torch.float32, "cpu")
    inject(transformer, resolve_targets(transformer, "default", family.lora_targets), 4, 8, 0)
    parameters = adapter_parameters(transformer, STUDENT)
    return [lora_file(random_state(parameters, seed), 4, 8, {}) for seed in (1, 2)]


@pytest.fixture(scope="module")
def drawn(tiny_base, loras):
    """Two samples of different shapes and two prompts, under the base and under the adapters."""
    config = make_config(
        tiny_base,
        lora={"rank": 4, "alpha": 8},
        method={"steps": 3},
        preview={"prompts": ["a green cat", "a red cat"]},
    )
    adapters = tuple([lambda payload=payload: payload] for payload in loras)
    samples = [
        Sample("one", "a red cat", random_image(32, 32, 0)),
        Sample("two", "a blue mat", random_image(24, 48, 1)),
    ]
    sampler = PreviewSampler(config, samples, "cpu", (24, 32))
    return config, sampler, sample_history(sampler, [(0, None), (5, lambda: adapters)])


def picture(files, name) -> Image.Image:
    return Image.open(io.BytesIO(files[name]))


def difference(one: Image.Image, other: Image.Image) -> int:
    pair = [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in (one, other)
    ]
    return int((pair[0].int() - pair[1].int()).abs().max())


def test_the_last_column_is_what_the_stock_sampler_draws(drawn):
    _, sampler, files = drawn
    for index in range(2):
        student, teacher = cut(picture(files, strip_path(5, index)), 4, 2)
        for row, role in ((student, "student"), (teacher, "teacher")):
            assert difference(row[-1], sampler.generate(index, role)) <= 2, role
        base = cut(picture(files, strip_path(0, index)), 4, 2)[0][-1]
        assert difference(base, sampler.generate(index, "base")) <= 2
        assert difference(base, student[-1]) > 2, "the adapters draw something else"
        assert difference(student[-2], student[-1]) == 0, "the last estimate is the drawing"


def test_own_prompts_are_what_the_stock_pipeline_draws_under_every_version(drawn, loras):
    config, sampler, files = drawn
    record = json.loads(files[HISTORY])
    assert [prompt["prompt"] for prompt in record["prompts"]] == ["a green cat", "a red cat"]
    pairs = [(drawing["version"], drawing["prompt"]) for drawing in record["pictures"]]
    assert pairs == [(0, 0), (0, 1), (5, 0), (5, 1)]
    pictures = {pair: picture(files, prompt_path(*pair)) for pair in pairs}
    assert {image.size for image in pictures.values()} == {(32, 24)}
    # Text encoder included, from a noise that anybody can draw again.
    stock = sampler.family.load_pipeline(torch.float32, "cpu")
    stock.load_lora_weights(load(loras[0]))
    shape = sampler.family.latent_shape(24, 32)
    for prompt, text in enumerate(sampler.prompts):
        name = f"preview.prompts/{prompt}"
        noise = sample_noise(config.run.seed, NoisePurpose.PREVIEW, name, shape)
        (expected,) = sample(sampler.family, stock, [text], 3, 24, 32, latents=noise[None])
        assert difference(pictures[5, prompt], expected) <= 2
        assert difference(pictures[0, prompt], expected) > 2, "the base's is another"


def test_what_is_drawn_already_is_named_and_not_drawn_again(drawn, loras):
    config, _, files = drawn
    bare = PreviewSampler(config, [], "cpu", (24, 32))

    def read():
        return tuple([lambda payload=payload: payload] for payload in loras)

    def unread():
        raise AssertionError("nothing of this version is left to draw")

    before = {(2, 0), (2, 1), (5, 1)}
    again = sample_history(bare, [(0, None), (2, unread), (5, read)], before)
    new = [(0, 0), (0, 1), (5, 0)]
    assert again.keys() == {HISTORY, *(prompt_path(*pair) for pair in new)}
    assert all(again[prompt_path(*pair)] == files[prompt_path(*pair)] for pair in new)
    named = [(each["version"], each["prompt"]) for each in json.loads(again[HISTORY])["pictures"]]
    assert named == sorted([*new, *before])


def test_records_hold_the_trajectories_behind_the_pictures(drawn):
    config, _, files = drawn
    tensors, meta = unpack(files["preview/trajectories/v000005-s01.safetensors"])
    assert meta["policy_version"] == meta["teacher_version"] == 5
    assert meta["step"] == NoisePurpose.PREVIEW and meta["sample_ids"] == ["two"]
    noise = sample_noise(config.run.seed, NoisePurpose.PREVIEW, "two", (4, 12, 24))
    assert torch.equal(tensors["noise"][0], noise)
    record = json.loads(files[HISTORY])
    assert [(row["version"], row["sample"]) for row in record["rows"]] == [
        (0, 0),
        (0, 1),
        (5, 0),
        (5, 1),
    ]
    # The difference shown is the loss of a state with x0 weighting.
    steps = (tensors["sigmas"][1:] - tensors["sigmas"][:-1]).view(-1, 1, 1, 1, 1)
    velocity = (tensors["states"][1:] - tensors["states"][:-1]) / steps
    error = (velocity - tensors["target_velocity"]).square().flatten(1).mean(1)
    loss = (tensors["sigmas"][:-1].square() * error).tolist()
    assert [state["difference"] for state in record["rows"][3]["states"]] == pytest.approx(
        loss, rel=1e-4
    )
