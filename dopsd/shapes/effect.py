"""The effect in one process: a LoRA by ``dopsd`` and one by ``sft``, judged by the oracle.

Both are plain loops on the turbo base over one training set, with one budget of samples, states and
optimizer steps; they differ in their training terms alone. ``dopsd reproduce shapes`` compares
through the distributed trainer, in float32 and with an EMA as teacher, where this has bf16 autocast
and the frozen base.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import Tensor

from dopsd.intervals import Value
from dopsd.method.objective import state_loss
from dopsd.method.off_policy import flow_matching, training_levels
from dopsd.method.terms import Terms, fused_terms, target_terms
from dopsd.models.z_image import ZImage
from dopsd.shapes import card, concepts, fast, nets, world
from dopsd.shapes.card_record import Effect, describe_effect
from dopsd.shapes.nets import Transformer
from dopsd.types import Context

OBJECTIVES = ("dopsd", "sft")
IMAGES = 12
SAMPLES = 70
STATES = 4
# Captions say all that is not the concept: the teacher sees the rest of the picture too, and what
# no text says would only be averaged.
CAPTIONS = ("detailed",)


@dataclass(frozen=True)
class Budget:
    """What both objectives may spend: AdamW steps of ``batch`` samples with 4 states each."""

    steps: int = 400
    batch: int = 8
    lr: float = 2e-4
    rank: int = 16


def measure(
    model: card.Model,
    seeds: Sequence[int],
    budget: Budget | None = None,
    samples: int = SAMPLES,
    say: card.Say = print,
) -> list[Effect]:
    """Judge the base, then each objective's LoRA, on every concept.

    Args:
        model: from ``card.load``; its turbo transformer is copied, not changed.
        seeds: each decides training images, their order, noise and prompts.
        budget: the same for each objective.
        samples: pictures of each kind and seed.
        say: gets one line per result.
    """
    forwards, effects = fast.Forwards(compiled=True), []
    for concept in concepts.CONCEPTS:
        for seed in seeds:
            for name in ("base", *OBJECTIVES):
                tuned = model.transformers["turbo"]
                if name != "base":
                    tuned = train_lora(model, concept, name, seed, budget or Budget(), forwards)
                effects.append(judge(model, tuned, name, concept, seed, samples))
                say(describe_effect(effects[-1]))
    return effects


def judge(
    model: card.Model, transformer: Transformer, name: str, concept: str, seed: int, samples: int
) -> Effect:
    """Score a transformer's four-step pictures for ``[V]`` prompts and for prior ones."""

    def scored(prompts: list[concepts.Prompt], kind: str) -> dict[str, Value]:
        images = card.draw(
            model, transformer, prompts, picture=False, steps=STATES, guidance=0.0, seed=1000 + seed
        )
        return card.evaluate(prompts, images, kind)

    return Effect(
        objective=name,
        concept=concept,
        seed=seed,
        count=samples,
        asked=scored(concepts.concept_prompts(concept, samples, 1000 + seed), concept),
        prior=scored(concepts.prior_prompts(samples, 1000 + seed), "prior"),
    )


def train_lora(
    model: card.Model,
    concept: str,
    objective: str,
    seed: int,
    budget: Budget,
    forwards: fast.Forwards,
) -> Transformer:
    """Tune a copy of the turbo transformer; the teacher of ``dopsd`` is the base itself.

    Raises:
        ValueError: for another objective than ``OBJECTIVES``.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: {objective!r}, allowed: {', '.join(OBJECTIVES)}")
    teacher = model.transformers["turbo"].requires_grad_(False)
    student: Transformer = copy.deepcopy(teacher)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.add_adapter(
            LoraConfig(
                r=budget.rank,
                lora_alpha=2 * budget.rank,
                init_lora_weights="gaussian",
                target_modules=list(ZImage.lora_targets),
            )
        )
    params = [param for param in student.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=budget.lr, weight_decay=0.0)
    batches = _Batches(model, concept, seed)
    grid = fast.sigmas(STATES)
    for _ in range(budget.steps):
        batch = batches.draw(budget.batch)

        def velocity(
            transformer: Transformer, state: Tensor, sigma: Tensor, context: Context
        ) -> Tensor:
            features, lengths = context.tensors["embeds"], context.tensors["lengths"]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return -forwards.transformer(transformer, state, 1 - sigma, features, lengths)

        @torch.no_grad()
        def scorer(state: Tensor, sigma: Tensor, context: Context = batch.teacher) -> Tensor:
            return velocity(teacher, state, sigma, context)

        if objective == "dopsd":
            terms = fused_terms(batch.noise[0], grid, batch.student, scorer, "x0")
        else:
            targets = flow_matching(batch.clean, batch.noise, batch.levels)
            terms = target_terms(targets, batch.student)
        _backward(terms, lambda *inputs: velocity(student, *inputs))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return student


def _backward(terms: Terms, velocity: Callable[..., Tensor]) -> None:
    """Accumulate the gradient of the mean loss, one state at a time."""
    term = next(terms)
    while True:
        output = velocity(term.state, term.sigma.expand(len(term.state)), term.context)
        (state_loss(output, term.target, term.weight).mean() / STATES).backward()
        try:
            term = terms.send(output.detach())
        except StopIteration:
            return


@dataclass(frozen=True)
class _Batch:
    student: Context
    teacher: Context
    clean: Tensor
    noise: Tensor
    levels: Tensor


class _Batches:
    """Training batches of a concept's few images, the same for each objective."""

    def __init__(self, model: card.Model, concept: str, seed: int):
        scenes = concepts.training_scenes(concept, IMAGES, seed)
        images = world.render(scenes)
        self._clean = nets.encode_images(model.vae, images)
        captions = [[concepts.captions_of(concept, s)[kind] for kind in CAPTIONS] for s in scenes]
        self._kinds = len(captions[0])
        texts = [text for image in captions for text in image]
        self._student = _encode(model, texts, None)
        self._teacher = _encode(model, texts, images.repeat_interleave(self._kinds, 0))
        self._rng = random.Random(f"{concept}/{seed}/batches")
        self._generator = torch.Generator().manual_seed(seed)
        self._schedule = fast.sigmas(1000)

    def draw(self, count: int) -> _Batch:
        rows = [self._rng.randrange(IMAGES) for _ in range(count)]
        pairs = [row * self._kinds + self._rng.randrange(self._kinds) for row in rows]
        noise = torch.randn(STATES, *self._clean[rows].shape, generator=self._generator)
        uniform = torch.rand(STATES, count, generator=self._generator)
        return _Batch(
            student=_rows(self._student, pairs),
            teacher=_rows(self._teacher, pairs),
            clean=self._clean[rows],
            noise=noise,
            levels=training_levels(uniform, self._schedule),
        )


@torch.no_grad()
def _encode(model: card.Model, texts: list[str], images: Tensor | None) -> Context:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, lengths = fast.Forwards().encode(model.vlm, model.tokens, texts, images)
    return Context({"embeds": features, "lengths": lengths})


def _rows(context: Context, rows: list[int]) -> Context:
    return Context({name: tensor[rows] for name, tensor in context.tensors.items()})
