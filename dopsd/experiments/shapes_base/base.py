"""Stage ``base``: flow matching on both branches at once, text and [picture + text]."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dopsd.experiments.shapes_base import fast, nets, vision
from dopsd.experiments.shapes_base.data import Batch, Pool, stratified_sigmas
from dopsd.experiments.shapes_base.nets import ChatTokenizer, Transformer, Vae, Vlm
from dopsd.experiments.shapes_base.optim import Average, Optimizers
from dopsd.experiments.shapes_base.progress import Progress, load_checkpoint, save_checkpoint
from dopsd.experiments.shapes_base.tokenizer import make_tokenizer

STEPS = 12_000
LEARNING_RATE = 2e-3
BATCH = 32

# Constant, then linear to nearly nothing over the last 35% of the steps.
DECAY_SHARE = 0.35
EMA_DECAY = 0.995
SAVE_EVERY = 250

# How many of a batch have a picture beside their text.
CONTEXT = 20

# What the picture shows matters most while the object is still forming, so the context half is
# trained at higher noise than the text half.
CONTEXT_SHIFT = 3.0

# Weight of the read-out beside the denoising loss: it keeps what the warm-up taught.
READOUT_WEIGHT = 0.3


class Base:
    """The trainable parts of the base and how to save and restore them."""

    def __init__(self, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer
        self.vlm: Vlm = nets.make_vlm(tokenizer)
        self.transformer: Transformer = nets.make_transformer()

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter once; tied ones (the unused output head) are not repeated."""
        named = [("transformer." + n, p) for n, p in self.transformer.named_parameters()]
        return named + [("vlm." + n, p) for n, p in self.vlm.named_parameters()]

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of both parts."""
        return {"vlm": self.vlm.state_dict(), "transformer": self.transformer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.vlm.load_state_dict(state["vlm"])
        self.transformer.load_state_dict(state["transformer"])


def train(folder: Path, vae: Vae, steps: int = STEPS, seed: int = 0) -> Base:
    """Train, or continue training, the base; the result lies in ``folder / "base.ckpt"``.

    The schedule depends on the step alone, so a run may be stopped and resumed at any
    checkpoint, under another number of threads.
    """
    checkpoint = folder / "base.ckpt"
    base = Base(make_tokenizer())
    readout = nn.Linear(nets.WIDTH, vision.ANSWERS)  # thrown away after training
    named = base.named_parameters() + [("readout." + n, p) for n, p in readout.named_parameters()]
    optimizers = Optimizers(named, LEARNING_RATE)
    average = Average([p for _, p in base.named_parameters()], EMA_DECAY)
    start = 0
    if saved := load_checkpoint(checkpoint):
        start = saved["step"]
        if start >= steps:
            base.load_state_dict(saved["average"])
            return base
        base.load_state_dict(saved["average"])
        average.values = [p.detach().clone() for p in average.params]
        base.load_state_dict(saved["base"])
        readout.load_state_dict(saved["readout"])
        optimizers.load_state_dict(saved["optimizers"])
    forwards, tokens = fast.Forwards(compiled=True), fast.PromptTokens(base.tokenizer)
    if start == 0:
        log = folder / "build.log"
        vision.train(base.vlm, readout, tokens, forwards, log, vision.STEPS)
    torch.manual_seed(seed + start)
    rng = random.Random(seed + start)
    pool = Pool(vae, folder / "pool.ckpt")
    progress = Progress("base", steps, folder / "build.log", start)
    for step in range(start, steps):
        done = step / steps
        batch = pool.draw(rng, BATCH - CONTEXT, CONTEXT)
        text, context, picture, mask = losses(base, forwards, tokens, batch, readout)
        share = CONTEXT / BATCH
        ((1 - share) * text + share * context + READOUT_WEIGHT * picture).backward()
        warm = min(1.0, (step - start + 1) / 60)
        optimizers.step(warm * min(1.0, 0.01 + (1 - done) / DECAY_SHARE))
        average.update(step + 1)
        parts = {"text": text, "context": context, "mask": mask}
        progress.step(step + 1, **{name: float(part.detach()) for name, part in parts.items()})
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state: dict[str, Any] = {"step": step + 1, "base": base.state_dict()}
            state |= {"readout": readout.state_dict(), "optimizers": optimizers.state_dict()}
            average.swap()
            state["average"] = {
                part: {name: value.detach().clone() for name, value in weights.items()}
                for part, weights in base.state_dict().items()
            }
            average.swap()
            save_checkpoint(checkpoint, state)
    average.swap()
    return base


def losses(
    base: Base,
    forwards: fast.Forwards,
    tokens: fast.PromptTokens,
    batch: Batch,
    readout: nn.Linear,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flow-matching losses of text and context, then the read-out's loss and its mask part."""
    texts, count = len(batch.texts), len(batch.latents)
    sigma = torch.cat([stratified_sigmas(texts), stratified_sigmas(count - texts, CONTEXT_SHIFT)])
    noise = torch.randn_like(batch.latents)
    level = sigma.view(-1, 1, 1, 1)
    state = (1 - level) * batch.latents + level * noise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, plain_lengths = forwards.encode(base.vlm, tokens, batch.texts)
        seen, seen_lengths = forwards.encode(base.vlm, tokens, batch.context_texts, batch.images)
        output = forwards.transformer(
            base.transformer,
            state,
            1 - sigma,
            torch.cat([plain, seen]),
            torch.cat([plain_lengths, seen_lengths]),
        )
    error = (output - (batch.latents - noise)).pow(2).mean((1, 2, 3))
    picture, mask = vision.readout_loss(readout, seen, batch.answers)
    return error[:texts].mean(), error[texts:].mean(), picture, mask
