"""Teach the vision tower to describe an object apart from where it stands.

The denoising loss alone finds the picture very late, and a picture's tokens that only spell out
their own patch leave it to the small diffusion transformer to carry a shape from one place to
another, which it did not learn in 3,000 steps. So the picture's 16 tokens are asked, through a
linear read-out of the features that the transformer gets, for the object in its own frame: token
i holds the i-th 2x2 block of the 8x8 mask, and every token the tile and both colours. A block is as
large as a token of the transformer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopsd.experiments.shapes_base import fast, nets
from dopsd.experiments.shapes_base.nets import Vlm
from dopsd.experiments.shapes_base.optim import Optimizers
from dopsd.experiments.shapes_base.progress import Progress
from dopsd.shapes import world
from dopsd.shapes.world import Scene

STEPS = 3000
BATCH = 64
LEARNING_RATE = 2e-3

# Mask block, tile, fill, ground.
ANSWERS = 4 + 16 + 3 + 3


def answers(scenes: Sequence[Scene]) -> Tensor:
    """What the picture's tokens should hold: [B, 16, 26], in [-1, 1]."""
    side = int(nets.CONTEXT_TOKENS**0.5)
    block = world.OBJECT // side
    masks = torch.stack([scene.mask for scene in scenes])
    blocks = masks.view(-1, side, block, side, block).transpose(2, 3).flatten(3).flatten(1, 2)
    tiles = torch.stack([scene.tile for scene in scenes]).flatten(1)
    fills, grounds = list(world.FILLS), list(world.GROUNDS)
    fill = world.FILL_RGB[[fills.index(scene.fill) for scene in scenes]]
    ground = world.GROUND_RGB[[grounds.index(scene.ground) for scene in scenes]]
    common = torch.cat([tiles, fill, ground], 1)[:, None].expand(-1, nets.CONTEXT_TOKENS, -1)
    return torch.cat([blocks, common], 2) * 2 - 1


def readout_loss(readout: nn.Linear, features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of the read-out, and of its mask part alone (a mean guess gives 1).

    ``features`` [B, 32, width]: of prompts with a picture. ``wanted``: ``answers`` of the scenes in
    the pictures.
    """
    hidden = features[:, fast.IMAGE_START : fast.IMAGE_START + nets.CONTEXT_TOKENS].float()
    with torch.autocast("cpu", enabled=False):
        guess = readout(F.rms_norm(hidden, hidden.shape[-1:]))
    error = (guess - wanted).pow(2)
    mask, rest = error[..., :4].mean(), error[..., 4:].mean()
    return mask + rest, mask.detach()


def train(
    vlm: Vlm,
    readout: nn.Linear,
    tokens: fast.PromptTokens,
    forwards: fast.Forwards,
    log: Path,
    steps: int = STEPS,
    seed: int = 4,
) -> None:
    """Train the vision tower and the read-out in place; the language model stays as it is."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    visual = vlm.model.visual
    named = [("visual." + name, param) for name, param in visual.named_parameters()]
    optimizers = Optimizers(named + list(readout.named_parameters()), LEARNING_RATE)
    progress = Progress("vision", steps, log)
    texts = [""] * BATCH
    for step in range(steps):
        scenes = [
            world.sample_scene(rng, nameless_shape=0.6, nameless_pattern=0.6) for _ in range(BATCH)
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, _ = forwards.encode(vlm, tokens, texts, world.render(scenes))
        loss, mask = readout_loss(readout, features, answers(scenes))
        loss.backward()
        optimizers.step(min(1.0, (step + 1) / 60) * min(1.0, 0.02 + 2 * (1 - step / steps)))
        vlm.model.language_model.zero_grad()
        progress.step(step + 1, loss=float(loss.detach()), mask=float(mask))
