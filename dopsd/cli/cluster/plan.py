"""`dopsd plan`: what a run needs, before anything is rented."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dopsd.cli.options import ConfigPath, Overrides, quiet
from dopsd.config import load_config
from dopsd.config.recipes import DEFAULT
from dopsd.plan.cards import DEFAULT as CARD
from dopsd.plan.cards import EFFICIENCY, card_named
from dopsd.terminal import say_lines

GPUS_MOST = 256


def plan(
    config: ConfigPath = DEFAULT,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=GPUS_MOST, help="GPUs to divide; default: as CONFIG asks."),
    ] = None,
    card: Annotated[str, typer.Option(help="Which card; an unknown one lists all.")] = CARD,
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the card's peak that is reached.")
    ] = EFFICIENCY,
    as_comment: Annotated[bool, typer.Option("--comment", help="As the head of a recipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Print what a run needs: memory of each role, FLOPs, bytes, seconds, and the best split.

    From config files alone: no weights are read, no GPU is asked.
    """
    chosen, run = card_named(card), load_config(config, overrides)
    quiet()
    from dopsd.data.known_concepts import refuse_unknown_concepts
    from dopsd.plan import comment, make_plan, table

    refuse_unknown_concepts(run, offline=True)
    made = make_plan(run, chosen, gpus, efficiency)
    if as_json:
        say_lines(json.dumps(made.record(), indent=1))
    else:
        say_lines(comment(made) if as_comment else table(made))
