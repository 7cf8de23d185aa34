"""The plan as training wants it: one line, and a word on GPUs that are too small."""

from __future__ import annotations

from dopsd import gpus
from dopsd.config import RunConfig
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.errors import ConfigError, ModelError, ResourceError, message_line
from dopsd.plan import Plan, make_plan, summary
from dopsd.plan.cards import CARDS, DEFAULT, USABLE, Card


def check_plan(config: RunConfig, show: Show, alone: bool) -> None:
    """Says what the run needs, unless ``plan.mode`` is off. ``alone``: all of it happens on this
    machine, so that its own GPUs are those that must hold it.

    Raises ConfigError for a card that is not listed, and in strict mode ResourceError for a role
    that does not fit, ModelError when the base's config files are not to be had.
    """
    if config.plan.mode == "off":
        return
    card = _card(config)
    try:
        plan = make_plan(config, card or CARDS[DEFAULT])
    except (ModelError, OSError) as error:
        if config.plan.mode == "strict":
            raise
        show("prepare", Report([f"No plan: {message_line(error)}"]))
        return
    problems = _problems(plan, card, alone)
    show("prepare", Report([summary(plan), *(f"WARNING: plan: {line}" for line in problems)]))
    if problems and config.plan.mode == "strict":
        raise ResourceError(
            f"plan: {problems[0]}; plan.mode: strict, allowed: larger GPUs, or less memory "
            "(`dopsd plan` shows where it goes; learner.gradient_checkpointing, learner.deepspeed)"
        )


def _card(config: RunConfig) -> Card | None:
    name = config.plan.card
    if name is None:
        return None
    if name not in CARDS:
        raise ConfigError(f"plan.card: {name!r}, allowed: {', '.join(CARDS)}")
    return CARDS[name]


def _problems(plan: Plan, card: Card | None, alone: bool) -> list[str]:
    if plan.config.device == "cpu":
        return []
    if card is not None:
        return plan.misfits(card.usable, card.name)
    found = gpus.installed() if alone else []
    if not found:
        return []
    least = min(found, key=lambda gpu: gpu.memory)
    return plan.misfits(least.memory * USABLE, f"{least.name} of this machine")
