"""Stage ``vae``: the autoencoder that gives one latent pixel to each cell of the canvas."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from dopsd.experiments.shapes_base import nets
from dopsd.experiments.shapes_base.nets import Vae
from dopsd.experiments.shapes_base.progress import Progress, load_checkpoint, save_checkpoint
from dopsd.intervals import mean
from dopsd.shapes import oracle, world

STEPS = 3000
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 3e-4
POOL = 6000
SAVE_EVERY = 300


def train(folder: Path, steps: int = STEPS, seed: int = 2) -> Vae:
    """Train, or continue training, the autoencoder; the result lies in ``folder / "vae"``.

    Small batches late in training sharpen the edges more than large ones, so the batch falls from
    48 to 16 pictures after a quarter of the steps.
    """
    done = folder / "vae"
    if (done / "config.json").is_file():
        return AutoencoderKL.from_pretrained(done).eval()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = nets.make_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0
    )
    checkpoint = folder / "vae.ckpt"
    start = 0
    if saved := load_checkpoint(checkpoint):
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    scenes = [
        world.sample_scene(rng, nameless_shape=0.6, nameless_pattern=0.6) for _ in range(POOL)
    ]
    pool = world.render(scenes) * 2 - 1
    progress = Progress("vae", steps, folder / "build.log", start)
    for step in range(start, steps):
        tail = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step / steps)))
        rate = min(1.0, (step + 1) / 50) * tail
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        batch = 48 if step < steps // 4 else 16
        images = pool[torch.randint(POOL, (batch,))].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - images
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = error.abs().mean() + 2 * error.pow(2).mean() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rmse = float((error.detach() / 2).pow(2).mean().sqrt())
        progress.step(step + 1, rmse=rmse, kl=float(kl.detach()))
        if (step + 1) % SAVE_EVERY == 0:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, state | {"step": step + 1})
    vae = vae.to(memory_format=torch.contiguous_format).eval()
    # The pipeline's convention: what the transformer sees has mean 0 and deviation 1.
    with torch.no_grad():
        latents = torch.cat([vae.encode(c).latent_dist.mode() for c in pool[:2000].split(250)])
    vae.register_to_config(
        scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean())
    )
    vae.save_pretrained(done)
    report(vae, progress)
    return vae


@torch.no_grad()
def report(vae: Vae, progress: Progress, count: int = 300) -> None:
    """Log how well each part of the world survives the autoencoder."""
    rng = random.Random(11)
    parts: dict[str, dict[str, float | str]] = {
        "known": {},
        "ring": {"shape": world.HELD_OUT_SHAPE},
        "bars": {"pattern": world.HELD_OUT_PATTERN},
        "nameless": {"nameless_shape": 1.0, "nameless_pattern": 1.0},
    }
    for name, choice in parts.items():
        scenes = [world.sample_scene(rng, **choice) for _ in range(count)]  # type: ignore[arg-type]
        images = world.render(scenes)
        output = nets.decode(vae, nets.encode_images(vae, images))
        rmse = float((output - images).pow(2).mean().sqrt())
        text = f"reconstruction of {name}: rmse {rmse:.4f}"
        if name != "nameless":
            readings = oracle.read(output)
            pairs = zip(readings, scenes, strict=True)
            ok = mean([r.valid and r.matches(scene, world.ATTRIBUTES) for r, scene in pairs])
            text += f", ok {ok:.3f}, palette error {mean([r.palette_error for r in readings]):.4f}"
            text += f", crisp {mean([r.crisp for r in readings]):.3f}"
        progress.say(text)
    progress.say(f"grain: {latent_grain(vae):.3f} in units of the latents")


@torch.no_grad()
def latent_grain(vae: Vae, count: int = 200) -> float:
    """Amplitude of the grain in normalised latents: half the length of the way, in the latent of
    a cell, from darker to lighter (noise has deviation 1 along it)."""
    rng = random.Random(12)
    scenes = [world.sample_scene(rng) for _ in range(count)]
    images, plain = world.render(scenes), world.render([scene.plain() for scene in scenes])
    lighter, darker = (nets.encode_images(vae, each) for each in (images, 2 * plain - images))
    return float((lighter - darker).pow(2).sum(1).mean().sqrt() / 2)
