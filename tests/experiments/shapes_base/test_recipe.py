"""The build at a handful of steps: it runs, resumes, and writes a folder that loads."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from dopsd.experiments.shapes_base import base as base_stage
from dopsd.experiments.shapes_base import data, fast, nets, optim, save, vision
from dopsd.experiments.shapes_base import turbo as turbo_stage
from dopsd.experiments.shapes_base.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return base_stage.Base(make_tokenizer())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    torch.manual_seed(0)
    full, cache = nets.make_vae().eval(), tmp_path_factory.mktemp("pool") / "pool.ckpt"
    known = data.world.every_scene()[::100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.world, "every_scene", lambda: known)
        return data.Pool(full, cache, size=40)


def test_a_base_step_lowers_the_loss_on_its_batch(base, pool):
    batch = pool.draw(random.Random(0), text=4, context=4)
    assert batch.latents.shape == (8, 4, 16, 16) and batch.images.shape == (4, 3, 32, 32)
    readout = nn.Linear(nets.WIDTH, vision.ANSWERS)
    named = base.named_parameters() + list(readout.named_parameters())
    optimizers = optim.Optimizers(named, lr=2e-3)
    forwards, tokens = fast.Forwards(), fast.PromptTokens(base.tokenizer)
    totals = []
    for _ in range(6):
        torch.manual_seed(0)
        parts = base_stage.losses(base, forwards, tokens, batch, readout)
        sum(parts[:3]).backward()
        optimizers.step(1.0)
        totals.append(float(sum(parts[:3]).detach()))
    assert totals[-1] < totals[0]


def test_a_distillation_round_scores_the_students_own_states(base, pool):
    torch.manual_seed(0)
    model = base.transformer
    forwards, tokens = fast.Forwards(), fast.PromptTokens(base.tokenizer)
    scored = turbo_stage.score_rollout(base, model, model, forwards, tokens, pool, random.Random(0))
    assert len(scored) == turbo_stage.SCORED and scored[0].index < scored[1].index == 3
    for item in scored:
        assert item.state.shape == item.end.shape == (turbo_stage.BATCH, 4, 16, 16)
        assert torch.isfinite(turbo_stage.end_loss(model, forwards, item))


def test_a_student_that_commits_to_the_end_has_no_loss_but_the_hubers(base, pool):
    torch.manual_seed(0)
    forwards, tokens = fast.Forwards(), fast.PromptTokens(base.tokenizer)
    model = base.transformer
    (_, item) = turbo_stage.score_rollout(
        base, model, model, forwards, tokens, pool, random.Random(0)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        time = (1 - fast.sigmas(4)[3]).expand(len(item.state))
        output = forwards.transformer(model, item.state, time, item.features, item.lengths)
    own = replace(item, end=item.state + fast.sigmas(4)[3] * output)
    loss = float(turbo_stage.end_loss(model, forwards, own))
    assert (
        abs(loss - turbo_stage.HUBER)
        < 1e-4
        < float(turbo_stage.end_loss(model, forwards, item)) - loss
    )


def test_muon_moves_along_an_orthogonal_matrix():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    weight.grad = torch.randn(16, 32)
    optim.Muon([weight], lr=1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(weight.detach()) / (0.2 * 32**0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_the_average_swaps_in_and_out():
    weight = torch.nn.Parameter(torch.zeros(2))
    average = optim.Average([weight], decay=0.5)
    weight.data.fill_(1.0)
    average.update(step=100)
    average.swap()
    assert torch.allclose(weight, torch.full((2,), 0.5))
    average.swap()
    assert torch.equal(weight, torch.ones(2))


def test_a_stage_resumes_where_it_stopped(tmp_path, pool, monkeypatch):
    monkeypatch.setattr(base_stage, "Pool", lambda vae, cache: pool)
    monkeypatch.setattr(base_stage, "BATCH", 4)
    plain = fast.Forwards
    monkeypatch.setattr(base_stage.fast, "Forwards", lambda compiled: plain())
    monkeypatch.setattr(base_stage, "SAVE_EVERY", 2)
    monkeypatch.setattr(base_stage, "CONTEXT", 2)
    monkeypatch.setattr(vision, "STEPS", 1)
    saved = []
    keep = base_stage.save_checkpoint
    monkeypatch.setattr(
        base_stage, "save_checkpoint", lambda p, c: (saved.append(c["step"]), keep(p, c))
    )
    base_stage.train(tmp_path, None, steps=2)
    base_stage.train(tmp_path, None, steps=5)
    assert saved == [2, 4, 5]
    again = base_stage.train(tmp_path, None, steps=5)
    average = base_stage.load_checkpoint(tmp_path / "base.ckpt")["average"]
    for part, weights in again.state_dict().items():
        for name, value in weights.items():
            assert torch.equal(value, average[part][name]), name


def test_a_written_folder_is_small_and_hashed(tmp_path, base):
    torch.manual_seed(0)
    other = base_stage.Base(make_tokenizer())
    nets.make_vae().save_pretrained(tmp_path / "vae")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    folder = save.write_pipeline(tmp_path / "w", vae, other, nets.make_transformer())
    assert not [p for p in folder.rglob("*.json") if str(tmp_path) in p.read_text()]
    assert save.folder_size(folder) <= save.LIMIT
    assert (folder / save.HASH_FILE).read_text().strip() == save.weights_hash(folder)
    assert max(path.stat().st_size for path in folder.rglob("*.safetensors")) < 4_000_000
