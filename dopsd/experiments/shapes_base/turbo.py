"""Stage ``turbo``: distil both branches of the base to four unguided steps.

Each of the student's four Euler steps regresses what the base reaches over the same interval in
several guided steps, from the state that the student itself is in. The interval maps are
deterministic, so nothing forces the student to average; and its states are its own, so it learns
to repair what it does wrong.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopsd.experiments.shapes_base import fast
from dopsd.experiments.shapes_base.base import Base
from dopsd.experiments.shapes_base.data import Pool
from dopsd.experiments.shapes_base.nets import Transformer, Vae
from dopsd.experiments.shapes_base.optim import Average, Optimizers
from dopsd.experiments.shapes_base.progress import Progress, load_checkpoint, save_checkpoint

ROUNDS = 600
LEARNING_RATE = 5e-4
BATCH = 32
GUIDANCE = 1.5

# The base's steps within each of the student's four; the last interval, from sigma 0.5 to 0, is
# where edges form.
SUBSTEPS = (2, 4, 6, 8)

# Share of states taken from noised data instead of the student's own way.
NOISED_SHARE = 0.2

# How often each scored state is trained on: scoring costs more than training.
REUSE = 2

# Errors (root mean square, of a velocity) well below it count squared, those above it plainly.
HUBER = 0.05
EMA_DECAY = 0.99
SAVE_EVERY = 25


@dataclass(frozen=True)
class Scored:
    """One interval for a batch: a state, where it lies, and the velocity that it should take."""

    state: Tensor
    index: int
    features: Tensor
    lengths: Tensor
    target: Tensor


def train(folder: Path, vae: Vae, base: Base, rounds: int = ROUNDS, seed: int = 1) -> Transformer:
    """Distil, or continue distilling; the result lies in ``folder / "turbo.ckpt"``."""
    checkpoint = folder / "turbo.ckpt"
    teacher = base.transformer.requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    optimizers = Optimizers(student.named_parameters(), LEARNING_RATE)
    average = Average(list(student.parameters()), EMA_DECAY)
    start = 0
    if saved := load_checkpoint(checkpoint):
        start = saved["round"]
        student.load_state_dict(saved["average"])
        if start >= rounds:
            return student
        average.values = [p.detach().clone() for p in average.params]
        student.load_state_dict(saved["student"])
        optimizers.load_state_dict(saved["optimizers"])
    torch.manual_seed(seed + start)
    rng = random.Random(seed + start)
    progress = Progress("turbo", rounds, folder / "build.log", start, every=10)
    pool = Pool(vae, folder / "pool.ckpt")
    forwards, tokens = fast.Forwards(compiled=True), fast.PromptTokens(base.tokenizer)
    buffer: list[Scored] = []
    updates, resumed = start * REUSE * len(SUBSTEPS), 0
    for round_ in range(start, rounds):
        done = round_ / rounds
        scored = score_rollout(base, teacher, student, forwards, tokens, pool, rng)
        buffer = [*buffer, *scored][-8 * len(scored) :]
        replayed = [rng.choice(buffer) for _ in range((REUSE - 1) * len(scored))]
        values: dict[str, float] = {}
        for item in [*scored, *replayed]:
            loss = interval_loss(student, forwards, item)
            loss.backward()
            updates, resumed = updates + 1, resumed + 1
            warm = min(1.0, resumed / 50)
            optimizers.step(warm * max(0.02, 1 - done))
            average.update(updates)
            values[f"step{item.index}"] = float(loss.detach())
        progress.step(round_ + 1, **values)
        if (round_ + 1) % SAVE_EVERY == 0 or round_ + 1 == rounds:
            state: dict[str, Any] = {"round": round_ + 1, "student": student.state_dict()}
            state["optimizers"] = optimizers.state_dict()
            average.swap()
            state["average"] = {k: v.detach().clone() for k, v in student.state_dict().items()}
            average.swap()
            save_checkpoint(checkpoint, state)
    average.swap()
    return student


@torch.no_grad()
def score_rollout(
    base: Base,
    teacher: Transformer,
    student: Transformer,
    forwards: fast.Forwards,
    tokens: fast.PromptTokens,
    pool: Pool,
    rng: random.Random,
) -> list[Scored]:
    """Roll the student out on a new batch and score each of its states with the teacher."""
    batch = pool.draw(rng, BATCH // 2, BATCH // 2)
    grid = fast.sigmas(len(SUBSTEPS))
    scored = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = forwards.encode(base.vlm, tokens, batch.texts)
        seen = forwards.encode(base.vlm, tokens, batch.context_texts, batch.images)
        empty = forwards.encode(base.vlm, tokens, [""])
        features, lengths = torch.cat([plain[0], seen[0]]), torch.cat([plain[1], seen[1]])
        x = torch.randn_like(batch.latents)
        noised = (torch.rand(len(x)) < NOISED_SHARE).view(-1, 1, 1, 1)
        for index, (now, after) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            if index:
                fresh = (1 - now) * batch.latents + now * torch.randn_like(x)
                x = torch.where(noised, fresh, x)
            levels = torch.linspace(float(now), float(after), SUBSTEPS[index] + 1)
            goal = fast.integrate(
                forwards, teacher, (features, lengths), x, levels, GUIDANCE, empty
            )
            target = (goal - x) / (now - after)
            scored.append(Scored(x, index, features, lengths, target))
            time = (1 - now).expand(len(x))
            x = x + (now - after) * forwards.transformer(student, x, time, features, lengths)
    return scored


def interval_loss(student: Transformer, forwards: fast.Forwards, item: Scored) -> Tensor:
    """Distance of the student's step from the base's, weighted by the interval's length.

    The root makes it a pseudo-Huber loss per picture: where the base chooses between two pictures,
    a student that cannot follow every choice learns the more frequent one, not their mean.
    """
    grid = fast.sigmas(len(SUBSTEPS))
    now, after = grid[item.index], grid[item.index + 1]
    time = (1 - now).expand(len(item.state))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = forwards.transformer(student, item.state, time, item.features, item.lengths)
    error = (output - item.target).pow(2).mean((1, 2, 3))
    return (error + HUBER**2).sqrt().mean() * ((now - after) / 0.25)
