"""Stage ``base``: flow matching on both branches at once, text and [picture + text]."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopsd.shapes import fast, nets
from dopsd.shapes.nets import ChatTokenizer, Transformer, Vae, Vlm
from dopsd.shapes.recipe.data import Batch, Pool, stratified_sigmas
from dopsd.shapes.recipe.optim import Average, Optimizers
from dopsd.shapes.recipe.progress import Progress, load_checkpoint, save_checkpoint
from dopsd.shapes.tokenizer import make_tokenizer

STEPS = 13_000
LEARNING_RATE = 2e-3
BATCH = 32
# Constant, then linear to nearly nothing over the last 45% of the steps.
DECAY_SHARE = 0.45
EMA_DECAY = 0.995
SAVE_EVERY = 250
# How strongly the picture's tokens are asked to spell out their 4x4 cells, and until when. Without
# it the context branch stays blind: the denoising loss alone finds the picture very late.
READOUT_WEIGHT = 3.0
READOUT_UNTIL = 0.3
SAME_PLACE_UNTIL = 0.15


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


def load(folder: Path) -> Base:
    """Load the averaged weights of a finished or running stage.

    Raises:
        FileNotFoundError: if the stage never saved any.
    """
    saved = load_checkpoint(folder / "base.ckpt")
    if saved is None:
        raise FileNotFoundError(f"no base in {folder}: run the stage `base` first")
    base = Base(make_tokenizer())
    base.load_state_dict(saved["average"])
    return base


def train(folder: Path, vae: Vae, steps: int = STEPS, seed: int = 0) -> Base:
    """Train, or go on training, the base; the result lies in ``folder / "base.ckpt"``.

    The schedule depends on the step alone, so a run may be stopped and gone on with at any
    checkpoint, under another number of threads.
    """
    checkpoint = folder / "base.ckpt"
    base = Base(make_tokenizer())
    readout = nn.Linear(nets.WIDTH, 48)
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
    torch.manual_seed(seed + start)
    rng = random.Random(seed + start)
    progress = Progress("base", steps, folder / "build.log", start)
    pool = Pool(vae, folder / "pool.ckpt")
    progress.say(f"{len(pool.known)} captioned and {len(pool.context)} context scenes encoded")
    forwards, tokens = fast.Forwards(compiled=True), fast.PromptTokens(base.tokenizer)
    for step in range(start, steps):
        done = step / steps
        same_place = 0.5 * max(0.0, 1 - done / SAME_PLACE_UNTIL)
        batch = pool.draw(rng, BATCH // 2, BATCH // 2, same_place)
        weight = READOUT_WEIGHT * max(0.0, 1 - done / READOUT_UNTIL)
        text, context, pixels = losses(base, forwards, tokens, batch, readout)
        ((text + context) / 2 + weight * pixels).backward()
        warm = min(1.0, (step - start + 1) / 60)
        optimizers.step(warm * min(1.0, 0.01 + (1 - done) / DECAY_SHARE))
        average.update(step + 1)
        parts = {"text": text, "context": context, "readout": pixels}
        progress.step(step + 1, **{name: float(part.detach()) for name, part in parts.items()})
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state: dict[str, Any] = {"step": step + 1, "base": base.state_dict()}
            state |= {"readout": readout.state_dict(), "optimizers": optimizers.state_dict()}
            average.swap()
            state["average"] = {k: _copied(v) for k, v in base.state_dict().items()}
            average.swap()
            save_checkpoint(checkpoint, state)
    average.swap()
    return base


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def losses(
    base: Base,
    forwards: fast.Forwards,
    tokens: fast.PromptTokens,
    batch: Batch,
    readout: nn.Linear,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flow-matching losses of the text and the context half, and the pixel read-out loss."""
    texts, count = len(batch.texts), len(batch.latents)
    sigma = torch.cat([stratified_sigmas(texts), stratified_sigmas(count - texts)])
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
        first, last = fast.IMAGE_START, fast.IMAGE_START + nets.CONTEXT_TOKENS
        hidden = seen[:, first:last].float()
        guess = readout(F.rms_norm(hidden, hidden.shape[-1:])).float()
    error = (output - (batch.latents - noise)).pow(2).mean((1, 2, 3))
    pixels = (guess - cells_of_tokens(batch.cells)).pow(2).mean()
    return error[:texts].mean(), error[texts:].mean(), pixels


def cells_of_tokens(cells: Tensor) -> Tensor:
    """Sort [B, 3, 16, 16] cells by the language token that covers them: [B, 16, 48]."""
    batch = len(cells)
    blocks = cells.view(batch, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, nets.CONTEXT_TOKENS, 48)
