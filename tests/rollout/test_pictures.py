"""A picture of an own prompt, drawn by an inference worker between its roll-outs."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
import torch
from PIL import Image

from dopsd.evaluation.preview.sampler import PreviewSampler, encode_prompts
from dopsd.export import lora_file, modules_file
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.records import EncodedBatch, SampleInfo
from dopsd.rollout.worker import InferenceWorker
from tests.helpers.bundles import made_bundle
from tests.helpers.tiny import make_config, make_context, random_state

SIZE = 24, 32
PROMPTS = ["a green cat", "a red cat"]
KINDS = {
    "lora": {},
    "shared pool, DoRA and modules": {
        "adapters": "lora+modules",
        "lora": {"dora": True, "modules_to_train": ["norms"]},
    },
}


def block() -> pa.Table:
    """An encoded micro-batch of two samples."""
    info = SampleInfo(0, 0, ("one", "two"), ("a", "b"), 16, 16, 2)
    batch = EncodedBatch(info, make_context((5, 7), 1), make_context((9, 6), 2))
    return pa.table({"step": [0], "index": [0], "payload": [batch.to_bytes()]})


def make(tiny_base, kind: str):
    """(worker, what draws after training, its files of a student, weights by version)."""
    lora = {"rank": 4, "alpha": 8, **KINDS[kind].get("lora", {})}
    rest = {name: value for name, value in KINDS[kind].items() if name != "lora"}
    preview = {"prompts": PROMPTS, "steps": 3}
    config = make_config(tiny_base, lora=lora, method={"steps": 2}, preview=preview, **rest)
    worker = InferenceWorker(config, "cpu", (STUDENT, TEACHER) if rest else (STUDENT,))
    start = {n: p.detach().clone() for n, p in own(worker).items()}
    states = {0: start, 1: random_state(start, 1), 2: random_state(start, 2)}
    bundles = {version: made_bundle(version, s, s) for version, s in states.items()}
    return worker, PreviewSampler(config, [], "cpu", SIZE), states, bundles


def own(worker: InferenceWorker) -> dict[str, torch.nn.Parameter]:
    return worker.trained.parameters(worker.transformer, STUDENT)


def files(config, state):
    """A student's exported files."""
    lora = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    modules = {name: tensor for name, tensor in state.items() if name not in lora}
    payloads = [lora_file(lora, 4, 8, {})] + [modules_file(modules, {})] * bool(modules)
    return [lambda payload=payload: payload for payload in payloads]


def image(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload))


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_that_of_the_end_and_the_next_rollout_is_the_same(tiny_base, kind):
    worker, sampler, states, bundles = make(tiny_base, kind)
    contexts = encode_prompts(worker.config, "cpu")
    worker.load(1, *(bundles[1].refs[adapter] for adapter in worker.adapters))
    before, _ = worker.generate(1, block())
    bound = {name: p.detach().clone() for name, p in own(worker).items()}

    drawn = {}
    for version in states:  # below the one that is bound, that one, and above it
        weights = bundles[version].refs[STUDENT]
        payload, stats = worker.draw(version, weights, contexts[1], 1, SIZE)
        drawn[version] = payload
        assert stats["seconds"] > 0 and image(payload).size == (SIZE[1], SIZE[0])
    assert worker.version == 1 and worker.generate(1, block())[0] == before
    assert all(torch.equal(p, bound[name]) for name, p in own(worker).items())

    assert len(set(drawn.values())) == 3
    for version, payload in drawn.items():
        if version:
            student = files(worker.config, states[version])
            sampler.load(student, student)
        assert image(payload).tobytes() == sampler.generate_prompt(1).tobytes(), version


def test_the_autoencoder_is_on_the_device_only_while_it_draws(tiny_base, monkeypatch):
    worker, _, _, bundles = make(tiny_base, "lora")
    (context, _) = encode_prompts(worker.config, "cpu")
    weights, painter = bundles[0].refs[STUDENT], worker._painter
    worker.load(0, weights)
    worker.draw(0, weights, context, 0, SIZE)
    moved: list[str] = []
    monkeypatch.setattr(painter._pipeline.vae, "to", moved.append)
    monkeypatch.setattr(painter, "_device", "cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moved.append("emptied"))
    worker.draw(0, weights, context, 0, SIZE)
    with pytest.raises(Exception, match="multiples of"):
        worker.draw(0, weights, context, 0, (7, 7))
    assert moved == ["cuda", "cpu", "emptied"] * 2


def test_a_picture_that_fails_leaves_the_worker_as_it_was(tiny_base):
    worker, _, _, bundles = make(tiny_base, "lora")
    (context, _) = encode_prompts(worker.config, "cpu")
    worker.load(1, bundles[1].refs[STUDENT])
    before, _ = worker.generate(1, block())
    with pytest.raises(Exception, match="multiples of"):
        worker.draw(2, bundles[2].refs[STUDENT], context, 0, (7, 7))
    assert worker.generate(1, block())[0] == before
