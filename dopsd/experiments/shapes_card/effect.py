"""The effect in one process: a LoRA by each of some objectives, judged by the oracle.

Both are plain loops on the turbo base over one training set (``effect_data``): half of every batch
the concept's images and half the base's own samples, and once more without those. One budget of
samples, states and optimizer steps; they differ in their training terms alone. ``dopsd reproduce
shapes`` compares through the distributed trainer, in float32 and with an EMA as teacher, where this
has bf16 autocast and the frozen base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from peft import LoraConfig
from torch import Tensor

from dopsd.experiments.shapes_base import fast
from dopsd.experiments.shapes_base.nets import Transformer
from dopsd.experiments.shapes_card import card
from dopsd.experiments.shapes_card.card_record import Effect, describe_effect
from dopsd.experiments.shapes_card.effect_data import CAPTIONS, STATES, Batches
from dopsd.method.objective import state_loss
from dopsd.method.off_policy import flow_matching, teacher_path
from dopsd.method.terms import Terms, fused_terms, target_terms
from dopsd.models.families.z_image import ZImage
from dopsd.records import Context
from dopsd.shapes import concepts, oracle

OBJECTIVES = ("dopsd", "sft")
"""Of the card."""
ALL_OBJECTIVES = (*OBJECTIVES, "off_policy")
"""``off_policy``: the teacher's velocities on its own trajectory, from the same noise."""
SAMPLES = 140


@dataclass(frozen=True)
class Budget:
    """What each objective may spend: AdamW steps of ``batch`` samples with 4 states each.

    ``lr`` falls to zero along a cosine. ``prior``: the base's own samples, one a prompt; 0 trains
    on the concept alone. ``captions``: which of an image's (``concepts.CAPTION_KINDS``) is trained
    on.
    """

    steps: int = 200
    batch: int = 8
    lr: float = 5e-4
    rank: int = 16
    prior: int = 250
    captions: str = CAPTIONS


def measure(
    model: card.Model,
    seeds: Sequence[int],
    budget: Budget | None = None,
    samples: int = SAMPLES,
    say: Callable[[str], None] = print,
    forwards: fast.Forwards | None = None,
) -> list[Effect]:
    """Judge the base, then each objective's LoRA with and without prior samples, on every concept.

    ``model``: from ``card.load``; its turbo transformer is copied, not changed. Each of ``seeds``
    decides training images, their order, noise and prompts. ``samples``: pictures of each kind and
    seed. ``say`` gets one line per result. ``forwards``: compiled ones by default, which takes a
    minute.
    """
    forwards, effects = forwards or fast.Forwards(compiled=True), []
    for concept in concepts.CONCEPTS:
        for seed in seeds:
            for name, beside in (("base", False), *product(OBJECTIVES, (True, False))):
                tuned = model.transformers["turbo"]
                if name != "base":
                    spent = budget or Budget()
                    spent = spent if beside else replace(spent, prior=0)
                    tuned = train_lora(model, concept, name, seed, spent, forwards, samples)
                effects.append(judge(model, tuned, name, concept, seed, samples, beside))
                say(describe_effect(effects[-1]))
    return effects


def compare(
    model: card.Model,
    objectives: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    samples: int = SAMPLES,
    say: Callable[[str], None] = print,
    forwards: fast.Forwards | None = None,
) -> list[Effect]:
    """The same under any ``budget``: a LoRA by each of ``objectives`` for each of the concepts
    ``names`` and each seed, without the base's own line."""
    forwards, effects = forwards or fast.Forwards(compiled=True), []
    for concept, seed, objective in product(names, seeds, objectives):
        tuned = train_lora(model, concept, objective, seed, budget, forwards, samples)
        effects.append(judge(model, tuned, objective, concept, seed, samples, budget.prior > 0))
        say(describe_effect(effects[-1]))
    return effects


def judge(
    model: card.Model,
    transformer: Transformer,
    name: str,
    concept: str,
    seed: int,
    samples: int,
    beside: bool,
) -> Effect:
    """Score a transformer's four-step pictures for ``[V]`` prompts and for prior ones.

    ``beside``: it was trained with prior samples too.
    """

    def drawn(prompts: list[concepts.Prompt]) -> Tensor:
        return card.generate(
            model, transformer, prompts, picture=False, steps=STATES, guidance=0.0, seed=1000 + seed
        )

    asked, prior = concepts.concept_prompts(concept, samples, 1000 + seed), _prior(samples, seed)
    images = drawn(prior)
    attribute = concepts.CONCEPTS[concept]
    shows = [getattr(seen, attribute) == concept for seen in oracle.read(images)]
    return Effect(
        objective=name,
        concept=concept,
        seed=seed,
        count=samples,
        prior_samples=beside,
        asked=card.evaluate(asked, drawn(asked), concept),
        prior={**card.evaluate(prior, images, "prior"), "leaked": card.rate(shows)},
    )


def _prior(samples: int, seed: int) -> list[concepts.Prompt]:
    return concepts.prior_prompts(samples, 1000 + seed)


def train_lora(
    model: card.Model,
    concept: str,
    objective: str,
    seed: int,
    budget: Budget,
    forwards: fast.Forwards,
    samples: int = SAMPLES,
) -> Transformer:
    """Tune a copy of the turbo transformer; the teacher, where there is one, is the base itself.

    ``samples``: the prior prompts that ``judge`` will ask for, so that none is trained on.
    """
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
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
    asked = {prompt.text for prompt in _prior(samples, seed)}
    batches = Batches(model, concept, seed, budget.prior, asked, budget.captions)
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
        elif objective == "off_policy":
            targets, _ = teacher_path(batch.noise[0], grid, scorer, "x0")
            terms = target_terms(targets, batch.student)
        else:
            targets = flow_matching(batch.clean, batch.noise, batch.levels)
            terms = target_terms(targets, batch.student)
        _backward(terms, lambda *inputs: velocity(student, *inputs))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
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
