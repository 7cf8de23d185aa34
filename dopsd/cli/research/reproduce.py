"""``dopsd reproduce``: arguments in, the table on the screen."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Annotated

import typer

from dopsd.cli.options import (
    COUNT_MOST,
    SEED_MOST,
    STEPS_MOST,
    Overrides,
    TakeOver,
    quiet,
    refuse_overrides,
)
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.terminal import say, say_lines

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """The paper's comparison, trained and judged on this machine."""


@app.command()
def shapes(
    folder: Annotated[
        str | None,
        typer.Option(
            help="Everything is kept here, and resumed. Default: runs/reproduce, with "
            "-quick or the names of the chosen rows."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and rate, the pattern alone, three rows.")
    ] = False,
    concept: Annotated[
        str | None, typer.Option(help="bars or ring alone. Default: both; of --quick: bars.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Trainings of each row.")] = 3,
    first_seed: Annotated[
        int,
        typer.Option(min=0, max=SEED_MOST, help="Seed of the first; see `dopsd reproduce pool`."),
    ] = 0,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this row: dopsd, dopsd-ema09, dopsd-frozen, dopsd-live, sft, "
            "off-policy-noised, off-policy-teacher, sft-on-teacher, sft-fifth, sft-on-adapter or "
            "off-policy-teacher-long; can be repeated. Default: all; of --quick: three."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=SEED_MOST, help="Optimizer steps of each.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of every row. Default: of each row and concept the best of "
            "three, on another seed; of --quick: 5e-4."
        ),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(
            min=1, max=200, help="Prompts of each concept, and of the prior; 3 noises each."
        ),
    ] = 40,
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=COUNT_MOST,
            help="Trainings beside each other, and workers that evaluate; each takes one core and "
            "2 GB. Default: as many as there are cores, at most 4.",
        ),
    ] = None,
    take_over: TakeOver = False,
) -> None:
    """D-OPSD beside SFT, off-policy distillation and other teachers, on the shapes world."""
    quiet()
    from dopsd.driver.monitoring.progress import Progress, clock
    from dopsd.experiments.reproduce import table
    from dopsd.experiments.reproduce.shapes import TABLE, Comparison, reproduce
    from dopsd.experiments.reproduce.variants import (
        FULL,
        QUICK,
        QUICK_RATES,
        QUICK_STEPS,
        RATES,
        TUNING_SEED,
        VARIANTS,
    )
    from dopsd.ownership.lease import claimed
    from dopsd.shapes.concepts import CONCEPTS
    from dopsd.shapes.world import HELD_OUT_PATTERN
    from dopsd.signals import interruptible

    if concept not in (None, *CONCEPTS):
        raise ConfigError(f"--concept: {concept!r}, allowed: {', '.join(CONCEPTS)}")
    if lr is not None and not 0 < lr < math.inf:
        raise ConfigError(f"--lr: {lr:g}, allowed: more than 0")
    if quick and concept is None:
        concept = HELD_OUT_PATTERN
    began = time.monotonic()
    known = tuple(variant.name for variant in VARIANTS)
    rows = row or (QUICK if quick else known)
    for name in rows:
        if name not in known:
            raise ConfigError(f"--row: {name!r}, allowed: {', '.join(known)}")
    numbers = range(first_seed, first_seed + (1 if quick else seeds))
    if TUNING_SEED in numbers:
        raise ConfigError(
            f"--first-seed: {first_seed}, allowed: seeds without {TUNING_SEED}, on which the rates "
            "are chosen"
        )
    if folder is None:
        folder = "-".join(["runs/reproduce", *(["quick"] if quick else []), *(row or [])])
    asked = Comparison(
        variants=tuple(variant for variant in VARIANTS if variant.name in rows),
        concepts=(concept,) if concept else tuple(CONCEPTS),
        seeds=numbers,
        rates=(QUICK_RATES if quick else RATES) if lr is None else (lr,),
        budget=replace(FULL, steps=steps or (QUICK_STEPS if quick else FULL.steps)),
        prompts=prompts,
    )

    def begin(title: str) -> Progress:
        say(title)
        return Progress()

    stays = f"what is trained and drawn stays in {folder}; the same command goes on"
    with interruptible(stays), claimed(folder, "--folder", take_over=take_over, tell=say):
        lines = reproduce(asked, folder, begin, at_once, take_over)
    say_lines("\n".join([table.markdown(lines), *table.verdicts(lines)]))
    say(f"{clock(time.monotonic() - began)}; tables and grids: {folder}/{TABLE}")


@app.command()
def paper(
    concept: Annotated[
        str, typer.Option(help="Images of a concept with captions: a folder, .jsonl or .parquet.")
    ],
    overrides: Overrides = None,
    folder: Annotated[
        str, typer.Option(help="Everything is kept here, and resumed.")
    ] = "runs/paper",
    adapter: Annotated[
        str | None,
        typer.Option(
            help="FILE or FILE@scale: a training adapter of the base; adds the row of SFT on it."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="clip=MODEL, dino=MODEL or judge=MODEL in place of the paper's; can be repeated."
        ),
    ] = None,
    prompt_vlm: Annotated[
        str,
        typer.Option(help="VLM that writes the held-out prompts; `templates`: without one."),
    ] = "Qwen/Qwen3-VL-4B-Instruct",
    seeds: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Pictures per prompt.")] = 1,
    steps: Annotated[
        int, typer.Option(min=1, max=STEPS_MOST, help="Sampler steps of a picture.")
    ] = 8,
    cost: Annotated[
        bool, typer.Option("--cost", help="Say the GPU hours of the trainings, and do nothing.")
    ] = False,
    take_over: TakeOver = False,
) -> None:
    """The paper's LoRA comparison on Z-Image-Turbo: D-OPSD, SFT, SFT on a training adapter."""
    quiet()
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.evaluation.spec import MetricChoice
    from dopsd.experiments.paper.run import PAGE, PaperRun, costs, reproduce_paper
    from dopsd.ownership.lease import claimed
    from dopsd.signals import interruptible

    decided = {"data.source": "--concept", "run.folder": "--folder", "data.shards": "--folder"}
    refuse_overrides(overrides, decided | ({"model.merge": "--adapter"} if adapter else {}))
    named = (choice.partition("=") for choice in metric or [])
    asked = PaperRun(
        concept=concept,
        folder=folder,
        adapter=adapter,
        metrics=tuple(MetricChoice(name, model or None) for name, _, model in named),
        prompt_vlm=None if prompt_vlm == "templates" else prompt_vlm,
        seeds=seeds,
        steps=steps,
        overrides=tuple(overrides or ()),
    )
    storage.check_writable("--folder", folder)
    for what, hours in costs(asked).items():
        say(f"{what}: {hours}")
    if cost:
        return

    def begin(title: str) -> Progress:
        say(title)
        return Progress()

    stays = f"what is trained and drawn stays in {folder}; the same command goes on"
    with interruptible(stays), claimed(folder, "--folder", take_over=take_over, tell=say):
        text = reproduce_paper(asked, begin, take_over)
    say_lines(text)
    say(f"Page: {folder}/{PAGE}")


@app.command()
def pool(
    tables: Annotated[
        list[str],
        typer.Argument(help="table.json of comparisons of other seeds.", metavar="FILE..."),
    ],
) -> None:
    """One table out of those of several machines or days."""
    from dopsd.experiments.reproduce import table

    lines = table.pooled([table.read(path) for path in tables])
    say_lines("\n".join([table.markdown(lines), *table.verdicts(lines)]))
