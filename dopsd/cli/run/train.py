"""`dopsd train`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from dopsd.cli.options import CONFIG, Overrides, TakeOver, quiet, refuse_overrides
from dopsd.config import RunConfig, load_config
from dopsd.config.load import overridden
from dopsd.config.recipes import DEFAULT
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.run_folder.commands import next_command
from dopsd.run_folder.files import RunFolder
from dopsd.terminal import say

if TYPE_CHECKING:
    from dopsd.driver.summary import Summary


def train(
    config: Annotated[
        str | None,
        typer.Argument(help=CONFIG.help, metavar=CONFIG.metavar, show_default=DEFAULT),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Resume from the newest checkpoint of this run folder."),
    ] = None,
    resume_if_there: Annotated[
        bool,
        typer.Option(
            "--resume-if-there",
            help="Start or resume, as the run folder stands; a finished run prints its summary "
            "(run.resume=auto).",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run folder, even an unfinished run.")
    ] = False,
    take_over: TakeOver = False,
) -> None:
    """Train: shards are prepared when missing, then roll out, score, learn, export a LoRA.

    With --resume, CONFIG is the run's own unless it is given.
    """
    _refuse_two(
        {"--resume": resume, "--resume-if-there": resume_if_there, "--overwrite": overwrite}
    )
    if resume is not None:
        run = resumed_config(resume, config, overrides)
    else:
        run = load_config(config or DEFAULT, overrides)
    if resume_if_there and run.run.resume != "auto":
        refuse_overrides(overrides, {"run.resume": "--resume-if-there"})
    if resume_if_there:
        run.run.resume = "auto"
    quiet()
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.driver.setup.checks import finished_already
    from dopsd.driver.train import train as launch

    if resume is not None and (line := finished_already(run)):
        say(line)
        return
    with Progress() as progress:
        summary = launch(
            run,
            progress.show,
            resume=resume is not None,
            replace=overwrite,
            take_over=take_over,
        )
    say("")
    _say_summary(summary, _adapter_title(run))
    say("Next, draw with it:")
    command = next_command(run, summary.lora, summary.modules, summary.transformer)
    say(f"  {command}")


def _refuse_two(options: dict[str, object]) -> None:
    """Each says what is to be done about a run in the folder."""
    if len(given := [name for name, value in options.items() if value]) > 1:
        raise ConfigError(f"{given[0]} with {given[1]}, allowed: one of them")


def _adapter_title(config: RunConfig) -> str:
    """What a run's adapter is, and who reads its file."""
    from dopsd.models import FAMILIES
    from dopsd.models.lora.factors import TITLES

    title, kind = TITLES[config.lora.kind], config.lora.kind
    if kind in FAMILIES[config.model.family].diffusers_kinds:
        return f"{title} (diffusers and ComfyUI)"
    return f"{title} (dopsd and ComfyUI)"


def _say_summary(summary: Summary, adapter: str) -> None:
    from dopsd.driver.monitoring.progress import clock
    from dopsd.run_folder.log import loss_steps

    say(
        f"Done: {summary.steps} steps in {clock(summary.seconds)} "
        f"(first step after {clock(summary.seconds_to_first_step)}); loss "
        f"{summary.first_loss:.4f} -> {summary.last_loss:.4f}, means of the first and last "
        f"{loss_steps(summary.steps)} steps"
    )
    adapted = ", ".join(f"{target} x{count}" for target, count in summary.adapted.items())
    for what, value in (
        (adapter, summary.lora),
        ("modules trained beside it", summary.modules),
        ("transformer (diffusers)", summary.transformer),
        ("adapted modules", adapted),
        ("contact sheet", summary.sheet),
        ("run page", summary.page),
        ("metrics, config", summary.folder),
    ):
        if value is not None:
            say(f"  {what:<29} {value}")
    for problem in summary.problems:
        say(f"  warning: {problem}")


def resumed_config(folder: str, config: str | None, overrides: list[str] | None) -> RunConfig:
    """The config of a resumed run: its own, or the file ``config``, with overrides."""
    overrides = list(overrides or [])
    if config is not None and "=" in config:  # the first override took the place of the file
        overrides.insert(0, config)
        config = None
    refuse_overrides(overrides, {"run.resume": "--resume"})
    given = overridden(overrides).get("run.folder", folder)
    if not (isinstance(given, str) and _plain(given) == _plain(folder)):
        raise ConfigError(f"run.folder: given beside --resume {folder}, allowed: one of them")
    if config is not None:
        run = load_config(config, overrides)
    else:
        if not RunFolder(folder).exists:
            raise ConfigError(f"--resume: {folder} holds no run; allowed: a run folder")
        run = RunFolder(folder).config(overrides)
    run.run.folder = folder
    return run


def _plain(folder: str) -> str:
    """A folder as any other spelling of its path says it."""
    return folder.rstrip("/") if storage.is_remote(folder) else os.path.abspath(folder)
