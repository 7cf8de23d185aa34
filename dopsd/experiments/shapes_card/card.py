"""Measure the base of the shapes world: the numbers of its model card.

Pictures are drawn with ``fast.integrate``, which equals the stock pipeline (see
``tests/experiments/shapes_base/test_fast.py``), in bf16 autocast over the shipped weights.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from dopsd.experiments.shapes_base import fast, nets
from dopsd.experiments.shapes_base.nets import ChatTokenizer, Transformer, Vae, Vlm
from dopsd.experiments.shapes_base.save import UNDISTILLED, weights_hash
from dopsd.experiments.shapes_card.card_record import Card, Row, describe
from dopsd.intervals import Value, bootstrap, mean, wilson
from dopsd.ownership.ownership import OwnedFolder
from dopsd.shapes import concepts, oracle, world
from dopsd.shapes.concepts import Prompt
from dopsd.shapes.grid import grid_png

GUIDANCE = 1.5

# Model, prompts, whether with a picture, steps, guidance.
Setting = tuple[str, str, bool, int, float]


@dataclass(frozen=True)
class Model:
    """What is needed to draw: the parts of a shipped folder, in float32."""

    vae: Vae
    vlm: Vlm
    tokens: fast.PromptTokens
    transformers: dict[str, Transformer]


def load(folder: Path) -> Model:
    """Load a folder written by ``shapes_base.save.write_pipeline``."""
    pipeline = ZImagePipeline.from_pretrained(folder)
    tokenizer: ChatTokenizer = pipeline.tokenizer
    transformers = {"turbo": pipeline.transformer}
    if (folder / UNDISTILLED).is_dir():
        transformers["undistilled"] = ZImageTransformer2DModel.from_pretrained(folder / UNDISTILLED)
    return Model(
        vae=pipeline.vae,
        vlm=Qwen3VLForConditionalGeneration.from_pretrained(folder / "vlm", dtype=torch.float32),
        tokens=fast.PromptTokens(tokenizer),
        transformers=transformers,
    )


def full_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts that name every attribute."""
    rng = random.Random(f"full/{seed}")
    scenes = [world.sample_scene(rng) for _ in range(count)]
    return [Prompt(world.caption(s, world.ATTRIBUTES), s, world.ATTRIBUTES) for s in scenes]


def partial_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts that name one to three attributes."""
    rng = random.Random(f"partial/{seed}")
    prompts = []
    for _ in range(count):
        scene, keep = world.sample_scene(rng), concepts.partial_keep(rng)
        prompts.append(Prompt(world.caption(scene, keep), scene, keep))
    return prompts


def prompts_of(kind: str, count: int, seed: int) -> list[Prompt]:
    """Draw the prompts of one kind: ``full``, ``partial``, or a concept's name."""
    if kind == "full":
        return full_prompts(count, seed)
    if kind == "partial":
        return partial_prompts(count, seed)
    return concepts.concept_prompts(kind, count, seed)


@torch.no_grad()
def generate(
    model: Model,
    transformer: Transformer,
    prompts: Sequence[Prompt],
    *,
    picture: bool,
    steps: int,
    guidance: float,
    seed: int,
    chunk: int = 35,
) -> Tensor:
    """Draw prompts, each beside a picture of its own scene if ``picture``.

    Returns [N, 3, 32, 32] in [0, 1]. The noise depends on ``seed`` and the prompt's index alone.
    """
    forwards, levels = fast.Forwards(), fast.sigmas(steps)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prompts), nets.LATENT_CHANNELS, 16, 16, generator=generator)
    images = []
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        seen = world.render([prompt.scene for prompt in part]) if picture else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            empty = forwards.encode(model.vlm, model.tokens, [""])
            condition = forwards.encode(model.vlm, model.tokens, [p.text for p in part], seen)
            latents = fast.integrate(
                forwards,
                transformer,
                condition,
                noise[start : start + chunk],
                levels,
                guidance,
                empty,
            )
        images.append(nets.decode(model.vae, latents.float()))
    return torch.cat(images)


def rate(hits: Sequence[bool]) -> Value:
    """The share of hits with Wilson's interval."""
    return Value(mean([float(hit) for hit in hits]), *wilson(sum(hits), len(hits)))


def evaluate(prompts: Sequence[Prompt], images: Tensor, kind: str) -> dict[str, Value]:
    """Score pictures of one kind of prompts.

    ``named``: attributes that the text names by a word, right; ``all_named``: pictures with all of
    them right; ``valid``: pictures of this world; ``ok``: both; ``contrast``, ``crisp`` and
    ``correlation``: of the grain (see ``oracle.Reading``). For a concept also ``concept``: pictures
    that show it and are valid, and ``same_place``: those that stand where the scene does.
    """
    readings = oracle.read(images)
    concept = concepts.CONCEPTS.get(kind)
    pairs = list(zip(readings, prompts, strict=True))

    def words(prompt: Prompt) -> list[str]:
        return [name for name in prompt.named if name != concept]

    hits = [seen.matches(p.scene, (name,)) for seen, p in pairs for name in words(p)]
    full = [seen.matches(p.scene, words(p)) for seen, p in pairs]
    ok = [hit and seen.valid for hit, seen in zip(full, readings, strict=True)]
    errors = [seen.palette_error for seen in readings]
    values = {
        "named": rate(hits),
        "all_named": rate(full),
        "valid": rate([seen.valid for seen in readings]),
        "ok": rate(ok),
        "palette_error": Value(mean(errors), *bootstrap(errors)),
    }
    for name in ("contrast", "crisp", "correlation"):
        amounts = [getattr(seen, name) for seen in readings]
        values[name] = Value(mean(amounts), *bootstrap(amounts))
    if concept:
        values["concept"] = rate([s.valid and s.matches(p.scene, (concept,)) for s, p in pairs])
        values["same_place"] = rate([(s.x, s.y) == (p.scene.x, p.scene.y) for s, p in pairs])
    return values


def settings(has_undistilled: bool) -> list[Setting]:
    """List every row of the card."""
    held_out = tuple(concepts.CONCEPTS)
    rows: list[Setting] = [("turbo", kind, False, 4, 0.0) for kind in ("full", "partial")]
    rows += [("turbo", kind, beside, 4, 0.0) for kind in held_out for beside in (True, False)]
    if has_undistilled:
        for kind in ("full", "partial"):
            rows += [("undistilled", kind, False, 16, GUIDANCE)]
            rows += [("undistilled", kind, False, steps, 0.0) for steps in (64, 16, 4)]
        for kind in held_out:
            rows += [("undistilled", kind, True, 4, 0.0)]
            rows += [("undistilled", kind, beside, 16, GUIDANCE) for beside in (True, False)]
    return rows


def measure(folder: Path, samples: int, seeds: Sequence[int], pictures: Path | None) -> Card:
    """Measure every row of the card on ``samples`` pictures for each seed.

    ``folder``: the weights. Each of ``seeds`` decides prompts and noise. ``pictures``: where to
    write one contact sheet per row, if anywhere. Prints one line per row.
    """
    model = load(folder)
    card = Card(weights_hash(folder), samples, tuple(seeds))
    card.rows.append(_reconstruction(model, samples * len(seeds)))
    print(describe(card.rows[-1]))
    for setting in settings("undistilled" in model.transformers):
        card.rows.append(measure_row(model, setting, samples, seeds, pictures))
        print(describe(card.rows[-1]))
    return card


def measure_row(
    model: Model,
    setting: Setting,
    samples: int,
    seeds: Sequence[int],
    pictures: Path | None = None,
) -> Row:
    """Measure one row, and write its contact sheet if ``pictures`` is given."""
    name, kind, beside, steps, guidance = setting
    prompts: list[Prompt] = []
    images = []
    for seed in seeds:
        drawn = prompts_of(kind, samples, seed)
        prompts += drawn
        images.append(
            generate(
                model,
                model.transformers[name],
                drawn,
                picture=beside,
                steps=steps,
                guidance=guidance,
                seed=seed,
            )
        )
    values = evaluate(prompts, torch.cat(images), kind)
    row = Row(name, kind, beside, steps, guidance, len(prompts), values)
    if pictures:
        shown = images[0][:24]
        if beside:
            # Under each line of context pictures what was drawn beside them.
            context = world.render([p.scene for p in prompts[:24]])
            shown = torch.cat([context[:12], shown[:12], context[12:], shown[12:]])
        own_pictures(pictures).write(sheet_name(setting), grid_png(shown))
    return row


def own_pictures(folder: Path) -> OwnedFolder:
    """Where contact sheets are written, with the record of them."""
    return OwnedFolder(str(folder), "card pictures", "--pictures")


def sheet_name(setting: Setting) -> str:
    """File name of a row's contact sheet."""
    name, kind, beside, steps, guidance = setting
    return f"{name}_{kind}{'_picture' if beside else ''}_{steps}steps_guidance{guidance:g}.png"


def _reconstruction(model: Model, count: int) -> Row:
    prompts = full_prompts(count, 0)
    images = world.render([prompt.scene for prompt in prompts])
    output = nets.decode(model.vae, nets.encode_images(model.vae, images))
    return Row("vae", "full", False, 0, 0.0, count, evaluate(prompts, output, "full"))
