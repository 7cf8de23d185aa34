"""`dopsd init`: a recipe of one's own, from five questions or as many flags."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from dopsd.cli.options import quiet
from dopsd.errors import ConfigError, DataError, DopsdError
from dopsd.files import storage
from dopsd.terminal import complain, say, say_lines

if TYPE_CHECKING:
    from dopsd.data.look import Look

Answer = TypeVar("Answer")


def init(
    base: Annotated[
        str | None,
        typer.Option(
            help="z_image_turbo, flux2_klein_4b, flux2_klein_9b, krea_2_turbo or shapes (the demo)."
        ),
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Your GPU, e.g. 4090-24; shapes needs none.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Your pictures: a folder, list, table or .tar, also s3://.")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="What is taught: the recipe and the run are named after it.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="here, ray or kuberay, with :N for N GPUs, e.g. here:1."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The recipe's file; default: the concept's name.")
    ] = None,
) -> None:
    """Ask what is trained on what, look at the data, plan, and write a commented recipe.

    Without a terminal all answers are flags. A file that is there is never replaced.
    """
    quiet()
    from dopsd.driver.own_recipe import answers as of

    if base == of.SHAPES and card is None:
        card = of.NO_CARD
    asks = _is_terminal()
    given = {"base": base, "card": card, "data": data, "concept": concept, "cluster": cluster}
    if not asks and (missing := [name for name, value in given.items() if value is None]):
        raise ConfigError(
            f"--{missing[0]}: missing, and no terminal to ask at; `dopsd init --help` has the flags"
        )
    from dopsd.driver.own_recipe.commands import next_commands, remarks
    from dopsd.driver.own_recipe.fit import fitted
    from dopsd.driver.own_recipe.text import recipe_text
    from dopsd.library.catalogue.names import slug
    from dopsd.plan import comment

    out = out and os.path.expanduser(out)  # no shell expands it behind a `=`

    def named(text: str) -> tuple[str, str]:
        """The concept, and the recipe's file."""
        name = of.concept_named(text)
        file = out or f"{slug(name)}.yaml"
        storage.check_file("--out", file)
        if storage.taken(file):
            raise ConfigError(
                f"{file}: is there already; allowed: "
                + ("another --out" if out else "another --concept, or --out with another file")
            )
        return name, file

    def placed(text: str) -> of.Cluster:
        """Where it trains: here only where a run's folder can be made."""
        where = of.cluster_named(text)
        if where.where == "here":
            storage.check_writable(f"run.folder ({of.RUNS}/NAME)", of.RUNS)
        return where

    # What is given is refused before anybody is asked, and before the data are looked at.
    chosen = base and of.base_named(base)
    if card is not None and chosen is not None:
        of.card_for(chosen, card)
    for value, check in ((cluster, placed), (concept, named)):
        if value is not None:
            check(value)
    ask = _Questions(asks)
    chosen = ask("base", base, of.base_named, f"Which base? {', '.join(of.BASES)}", "z_image_turbo")
    no_gpu = chosen == of.SHAPES
    gpu = ask(
        "card",
        of.NO_CARD if no_gpu and card is None else card,  # the base may have been asked for
        lambda text: of.card_for(chosen, text),
        "Which card? " + ", ".join(of.CARDS),
        "4090-24",
    )
    source, found = ask(
        "data",
        data,
        lambda text: _looked_at(chosen, text),
        "Where are the pictures? A folder, list, table or .tar",
        "shapes:bars" if no_gpu else None,
    )
    name, file = ask("concept", concept, named, "What are they called?", _likely(source, found))
    where = ask(
        "cluster",
        cluster,
        placed,
        "Where does it train? here, ray or kuberay, :N for N GPUs",
        "here:1",
    )
    several = found.concepts if found else {}
    only = (name,) if len(several) > 1 and name in several else ()
    made = of.Answers(chosen, gpu, source, name, where, only)
    config, plan = fitted(made, of.free_run_name(slug(name)))
    commands = next_commands(made, config, file)
    text = recipe_text(made, plan, commands)
    if not storage.create(file, text.encode()):
        raise ConfigError(f"{file}: is there already; allowed: another --out")
    say("")
    if gpu:
        say_lines("\n".join(line.removeprefix("# ") for line in comment(plan).splitlines()))
    for line in remarks(made, plan):
        say(line)
    say(f"Recipe: {file}")
    say("Next:")
    for command in commands:
        say(f"  {command}")


def _is_terminal() -> bool:
    return sys.stdin.isatty()


class _Questions:
    """Takes what a flag gave, or asks until an answer can be used."""

    def __init__(self, asks: bool) -> None:
        self._asks = asks

    def __call__(
        self,
        flag: str,
        given: str | None,
        check: Callable[[str], Answer],
        question: str,
        default: str | None = None,
    ) -> Answer:
        if given is not None:
            return check(given)
        while True:
            try:
                return check(typer.prompt(question, default=default))
            except DopsdError as error:
                complain(str(error))


def _looked_at(base: str, source: str) -> tuple[str, Look | None]:
    """The source and what it holds, told; None of what is drawn when it is prepared. Raises
    DataError for one that cannot be used."""
    from dopsd.cli.data.look import looked_at
    from dopsd.config import load_config
    from dopsd.config.load import as_text
    from dopsd.data.shapes_source import SHAPES, check_shapes_source
    from dopsd.driver.own_recipe.answers import BASES

    config = load_config(BASES[base], [f"data.source={as_text(source)}"])
    if source.startswith(SHAPES):
        check_shapes_source(source, "--data")
        return source, None
    found = looked_at(config, source)
    if not found.rows:
        raise DataError(f"--data: {source}: no sample can be used")
    say(f"Pictures and buckets as a page: {shlex.join(['dopsd', 'data', 'look', source])}")
    return source, found


def _likely(source: str, found: Look | None) -> str:
    """What the pictures are likely called."""
    names = [name for name in (found.concepts if found else {}) if name]
    if len(names) == 1:
        return names[0]
    return os.path.splitext(os.path.basename(source.rstrip("/")))[0].removeprefix("shapes:")
