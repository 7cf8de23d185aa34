"""Stage ``turbo``: distil both branches of the base to four unguided steps that commit.

From each state that the student itself reaches, its clean estimate regresses the END of the base's
path: where many guided steps, finer toward the end, lead from there. That map is deterministic, so
nothing forces the student to average: it draws one picture with all its grain where the base's own
velocity, the mean of all pictures, draws none of it in four steps. Its states are its own, so it
learns to repair what it does wrong.
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

# The base's steps from each of the student's four states to the end.
TO_END = (18, 16, 14, 12)

# How much finer they get: the fraction of sigma that is left after the share q is (1 - q) ** 1.5.
FINER = 1.5

# States of a rollout that are scored: the last one, where the grain is set, and one of the others.
SCORED = 2

# Share of states taken from noised data instead of the student's own way.
NOISED_SHARE = 0.2

# How often each scored state is trained on: scoring costs more than training.
REUSE = 2

# Errors of a cell (root mean square, of a clean estimate) well below it count squared, those above
# it plainly.
HUBER = 0.03
EMA_DECAY = 0.99
SAVE_EVERY = 25


@dataclass(frozen=True)
class Scored:
    """A state for a batch, where it lies, and the picture that it leads to."""

    state: Tensor
    index: int
    features: Tensor
    lengths: Tensor
    end: Tensor


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
    updates, resumed = start * REUSE * SCORED, 0
    for round_ in range(start, rounds):
        done = round_ / rounds
        scored = score_rollout(base, teacher, student, forwards, tokens, pool, rng)
        buffer = [*buffer, *scored][-8 * len(scored) :]
        replayed = [rng.choice(buffer) for _ in range((REUSE - 1) * len(scored))]
        values: dict[str, float] = {}
        for item in [*scored, *replayed]:
            loss = end_loss(student, forwards, item)
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
    """Roll the student out on a new batch and follow the teacher to the end from two states."""
    batch = pool.draw(rng, BATCH // 2, BATCH // 2)
    grid = fast.sigmas(len(TO_END))
    chosen = (rng.randrange(len(TO_END) - 1), len(TO_END) - 1)
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
            if index in chosen:
                levels = now * (1 - torch.linspace(0, 1, TO_END[index] + 1)) ** FINER
                condition = features, lengths
                end = fast.integrate(forwards, teacher, condition, x, levels, GUIDANCE, empty)
                scored.append(Scored(x, index, features, lengths, end))
            time = (1 - now).expand(len(x))
            x = x + (now - after) * forwards.transformer(student, x, time, features, lengths)
    return scored


def end_loss(student: Transformer, forwards: fast.Forwards, item: Scored) -> Tensor:
    """Distance of the student's clean estimate from the end of the base's path.

    The root makes it a pseudo-Huber loss per cell: where the base chooses between two pictures,
    a student that cannot follow every choice learns the more frequent one, not their mean.
    """
    now = fast.sigmas(len(TO_END))[item.index]
    time = (1 - now).expand(len(item.state))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = forwards.transformer(student, item.state, time, item.features, item.lengths)
    error = (item.state + now * output - item.end).pow(2).mean(1)
    return (error + HUBER**2).sqrt().mean()
