"""``dopsd shapes``: rebuild the base of the tiny world, measure it, render its concepts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dopsd.cli.options import COUNT_MOST, SEED_MOST, TakeOver
from dopsd.config.load import as_override
from dopsd.errors import ConfigError
from dopsd.shown import brief
from dopsd.terminal import say

app = typer.Typer(no_args_is_help=True, add_completion=False)

Threads = Annotated[
    int, typer.Option(min=0, max=4096, help="CPU threads; 0 leaves PyTorch's default.")
]


def _local(path: str | Path) -> Path:
    """A folder on this machine: of a URL a path would make another text, whose secrets nobody
    knows any more."""
    if "://" in str(path):
        raise typer.BadParameter("a URL, allowed: a folder on this machine")
    return Path(path)


@app.callback()
def main() -> None:
    """The embedded tiny world: pictures, captions, an exact oracle, a real few-step base."""


@app.command("build-base")
def build_base(
    out: Annotated[
        Path, typer.Option(help="Weights folder to write.", parser=_local, metavar="DIR")
    ] = Path("runs/shapes/base"),
    work: Annotated[
        Path,
        typer.Option(
            help="Checkpoints and log; the same folder resumes where it stopped.",
            parser=_local,
            metavar="DIR",
        ),
    ] = Path("runs/shapes/build"),
    stage: Annotated[str, typer.Option(help="Last stage: vae, base or turbo.")] = "turbo",
    base_steps: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Steps of the base.")
    ] = 12_000,
    turbo_rounds: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Rounds of the distillation.")
    ] = 600,
    threads: Threads = 0,
    take_over: TakeOver = False,
) -> None:
    """Train the base from nothing: autoencoder, joint base, few-step distillation. Resumable."""
    import torch

    from dopsd.experiments.shapes_base.run import STAGES, build
    from dopsd.ownership.lease import claimed
    from dopsd.signals import interruptible

    if stage not in STAGES:
        raise ConfigError(f"--stage: {stage!r}, allowed: {', '.join(STAGES)}")
    if threads:
        torch.set_num_threads(threads)
    with (
        interruptible(f"what is trained stays in {work}; the same command goes on"),
        claimed(str(work), "--work", take_over=take_over, tell=say),
    ):
        written = build(work, out, stage, base_steps, turbo_rounds)
    say(f"wrote {written}; measure it with: dopsd shapes card --weights {written} --write")


@app.command()
def card(
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights folder; the shipped base by default.", parser=_local, metavar="DIR"
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Pictures per seed and setting.")
    ] = 200,
    seeds: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Number of seeds.")] = 3,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for one contact sheet per setting.", parser=_local, metavar="DIR"
        ),
    ] = None,
    effect_seeds: Annotated[
        int,
        typer.Option(min=0, max=COUNT_MOST, help="Seeds of the LoRA comparison; 0 leaves it out."),
    ] = 3,
    write: Annotated[bool, typer.Option(help="Store the card beside the weights.")] = False,
    threads: Threads = 0,
) -> None:
    """Measure the base with the oracle and hold it against its gates."""
    import torch

    from dopsd.experiments.shapes_base import save
    from dopsd.experiments.shapes_card import card as cards
    from dopsd.experiments.shapes_card import card_record, effect
    from dopsd.experiments.shapes_card.card_gates import gates
    from dopsd.shapes import weights_path

    if threads:
        torch.set_num_threads(threads)
    folder = weights or weights_path()
    if not os.path.isfile(folder / "model_index.json"):  # False of a name that none can have
        raise ConfigError(f"--weights: {brief(str(folder))} holds no base, allowed: a pipeline's")
    if write:
        save.owned(folder, "--weights").check(save.CARD, save.CARD_PAGE)
    if pictures:
        sheets = [cards.sheet_name(setting) for setting in cards.settings(has_undistilled=True)]
        cards.own_pictures(pictures).check(*sheets)
    result = cards.measure(folder, samples, tuple(range(seeds)), pictures)
    result.effects = effect.measure(cards.load(folder), tuple(range(effect_seeds)))
    result.gates = gates(result)
    for gate in result.gates:
        say(f"{'met ' if gate.met else 'OPEN'} {gate.name}: {gate.measured} ({gate.required})")
    if write:
        card_record.write(result, folder)
        say(f"wrote {folder / 'card.json'} and {folder / 'README.md'}")


@app.command()
def effect(
    objective: Annotated[
        list[str], typer.Option(help="dopsd, off_policy or sft; may be given again.")
    ],
    concept: Annotated[
        list[str] | None, typer.Option(help="bars or ring; both by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Optimizer steps.")] = 200,
    rank: Annotated[int, typer.Option(min=1, max=256, help="Of the LoRA.")] = 16,
    lr: Annotated[float, typer.Option(min=1e-9, max=1.0, help="First rate.")] = 5e-4,
    prior: Annotated[
        int, typer.Option(min=0, max=COUNT_MOST, help="The base's own samples; 0: none.")
    ] = 250,
    captions: Annotated[
        str, typer.Option(help="Trained on: short, medium, detailed or user_prompt.")
    ] = "detailed",
    seeds: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Trainings of each.")] = 1,
    samples: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Pictures of each kind and training.")
    ] = 140,
    threads: Threads = 0,
) -> None:
    """Train a LoRA by each objective in this process, under any budget: a line of each."""
    import torch

    from dopsd.experiments.shapes_card import card as cards
    from dopsd.experiments.shapes_card import effect as effects
    from dopsd.shapes import weights_path
    from dopsd.shapes.concepts import CAPTION_KINDS, CONCEPTS

    names = concept or sorted(CONCEPTS)
    for option, given, allowed in (
        ("--objective", objective, effects.ALL_OBJECTIVES),
        ("--concept", names, sorted(CONCEPTS)),
        ("--captions", [captions], CAPTION_KINDS),
    ):
        if wrong := [each for each in given if each not in allowed]:
            raise ConfigError(f"{option}: {wrong[0]!r}, allowed: {', '.join(allowed)}")
    if threads:
        torch.set_num_threads(threads)
    budget = effects.Budget(steps=steps, lr=lr, rank=rank, prior=prior, captions=captions)
    model = cards.load(weights_path())
    effects.compare(model, objective, names, range(seeds), budget, samples, say)


@app.command()
def concept(
    name: Annotated[str, typer.Argument(help="bars or ring.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write the set to.", parser=_local)],
    count: Annotated[int, typer.Option(min=1, max=COUNT_MOST, help="Number of images.")] = 12,
    seed: Annotated[int, typer.Option(min=0, max=SEED_MOST, help="Decides the scenes.")] = 0,
    take_over: TakeOver = False,
) -> None:
    """Render a training set of a concept that the base has no word for."""
    from dopsd.ownership.lease import claimed
    from dopsd.ownership.ownership import OwnedFolder
    from dopsd.shapes.concepts import CONCEPTS, write_concept_set

    if name not in CONCEPTS:
        raise ConfigError(f"concept: {name!r}, allowed: {', '.join(sorted(CONCEPTS))}")
    own = OwnedFolder(str(folder), "concept", "FOLDER")
    images = [f"images/{number:04d}.png" for number in range(count)]
    own.check("data.jsonl", "images/", *images)
    with claimed(str(folder), "FOLDER", take_over=take_over, tell=say):
        own.check("data.jsonl", "images/", *images)
        own.claim("data.jsonl", "images/", *images)
        table = write_concept_set(name, folder, count, seed)
        own.seal_as_they_are("data.jsonl", *images)
    say(f"wrote {count} images; train on them with:")
    words = [as_override("data.source", str(table)), f"run.folder=runs/{name}"]
    say(f"  dopsd train shapes {shlex.join(words)}")
