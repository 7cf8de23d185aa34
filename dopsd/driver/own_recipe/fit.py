"""The settings of a recipe of one's own: those of its base's recipe, made to fit the card."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dopsd.config import RunConfig, load_config
from dopsd.config.load import as_text
from dopsd.driver.own_recipe.answers import BASES, RUNS, SHAPES, Answers
from dopsd.errors import ResourceError
from dopsd.plan import Plan, make_plan
from dopsd.plan.cards import CARDS, GIB, Card

_SAVINGS = (("none", False), ("none", True), ("int8", True), ("nf4", True))
"""(model.quantize, learner.gradient_checkpointing) that smaller and smaller cards take."""
_ENCODERS = ("none", "int8", "nf4")
_ROOM = 0.8
"""Of a card's memory that a plan may take, for a plan is arithmetic; more only where nothing else
fits."""
_BATCH = 4
"""Samples of a step at least: the authors'."""


def fitted(answers: Answers, name: str) -> tuple[RunConfig, Plan]:
    """The config and its plan, the run called ``name``. Raises ResourceError for a card that holds
    the base in no way."""
    if answers.base == SHAPES:
        config = load_config(BASES[SHAPES], [*_own(answers, name), "run.overwrite=false"])
        return config, make_plan(config)
    card = answers.card
    assert card is not None, "only the tiny world needs none"
    tried = [_planned(answers, name, card, quantize, again) for quantize, again in _SAVINGS]
    fits = [plan for plan in tried if not plan.misfits(card.usable, card.name)]
    roomy = [plan for plan in fits if not plan.misfits(_ROOM * card.usable, card.name)]
    if not fits:
        least = min(group.memory for group in tried[-1].shipped.groups)
        larger = [each.name for each in CARDS.values() if each.usable >= least]
        raise ResourceError(
            f"--card: {card.name} holds {card.usable / GIB:.1f} GiB, {answers.base} takes "
            f"{least / GIB:.1f} GiB in 4 bits; allowed: {', '.join(larger)}"
        )
    plan = (roomy or fits)[0]
    return plan.config, plan


def _planned(answers: Answers, name: str, card: Card, quantize: str, again: bool) -> Plan:
    given = [
        *_own(answers, name),
        *_fused(answers),
        f"model.quantize={quantize}",
        f"learner.gradient_checkpointing={str(again).lower()}",
        f"plan.card={card.name}",
    ]
    for encoder in _ENCODERS:  # it has the card for itself, while contexts are computed
        config = load_config(BASES[answers.base], [*given, f"encoder.quantize={encoder}"])
        plan = make_plan(config, card)
        if plan.total(plan.demand.encoder()) <= _ROOM * card.usable:
            break
    return plan


def _own(answers: Answers, name: str) -> Iterator[str]:
    """Overrides that name the run and its data; JSON is YAML, whatever a name holds."""
    yield f"run.name={as_text(name)}"
    yield f"run.folder={as_text(f'{RUNS}/{name}')}"
    yield f"data.source={as_text(answers.source)}"
    if answers.concepts:
        yield f"data.concepts={as_text(answers.concepts)}"


def _fused(answers: Answers) -> list[str]:
    """Learners do all the work, and contexts are computed before: the one way that fits any number
    of GPUs of any size."""
    gpus = answers.cluster.gpus
    return [
        "source=fused",
        "max_policy_lag=0",
        "inference.shared=false",
        "data.context_cache=require",
        "encoder.gpus=1",
        f"learner.workers={gpus}",
        f"learner.global_batch={gpus * math.ceil(_BATCH / gpus)}",
    ]
