"""The command line: `dopsd train`, `preflight`, `report` and more; `dopsd --help` lists them."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from typer.core import TyperGroup

from dopsd import __version__, processes
from dopsd.cli.cluster.doctor import doctor
from dopsd.cli.cluster.fetch import fetch
from dopsd.cli.cluster.job import job
from dopsd.cli.cluster.plan import plan
from dopsd.cli.data.caption import caption
from dopsd.cli.data.look import app as data
from dopsd.cli.data.prepare import prepare
from dopsd.cli.init import init
from dopsd.cli.last_resort import report_crash
from dopsd.cli.library import app as library
from dopsd.cli.lora.check import app as lora
from dopsd.cli.lora.evaluate import evaluate
from dopsd.cli.lora.export import export
from dopsd.cli.lora.generate import generate
from dopsd.cli.lora.push import push
from dopsd.cli.research.benchmark import benchmark
from dopsd.cli.research.reproduce import app as reproduce
from dopsd.cli.research.shapes import app as shapes
from dopsd.cli.run.inspect import checkpoint, report, show_config, stats, status, verify
from dopsd.cli.run.preflight import preflight
from dopsd.cli.run.train import train
from dopsd.errors import DopsdError, InterruptedRun, message_line
from dopsd.signals import handled, interruptible
from dopsd.terminal import complain, say, write_anything


class _Commands(TyperGroup):
    """Whichever command runs, a signal ends it with one line."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible("the same command begins again"):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    help="Tune step-distilled text-to-image models by on-policy self-distillation (D-OPSD).",
    pretty_exceptions_enable=False,
)


_PANELS: dict[str, tuple[Any, ...]] = {
    "A run": (init, train, preflight, status, report, stats, verify, checkpoint),
    "Data": (prepare, caption),
    "The result": (generate, evaluate, export, push),
    "Machines and models": (plan, doctor, fetch, job),
    "Reference": (show_config, benchmark),
}
_GROUPS: tuple[tuple[str, str, Any, str], ...] = (
    ("A run", "library", library, "Many concepts, an adapter of each."),
    ("Data", "data", data, "What a data set is, before any config."),
    ("The result", "lora", lora, "What a LoRA file is."),
    ("Reference", "shapes", shapes, "The embedded tiny world."),
    ("Reference", "reproduce", reproduce, "The paper's comparison, trained and judged here."),
)
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        _name = "config" if _command is show_config else None
        app.command(_name, rich_help_panel=_panel)(_command)
for _panel, _name, _group, _help in _GROUPS:
    app.add_typer(_group, name=_name, help=_help, rich_help_panel=_panel)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(__version__)
        raise typer.Exit


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 1 (2 for a command
    line that cannot be read), a signal's end one line and 128 + its number, an error that nobody
    foresaw one line and 70."""
    write_anything()
    with handled(own_process=argv is None):
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    try:
        code = app(args=argv, prog_name="dopsd", standalone_mode=False)
    except DopsdError as error:
        if isinstance(error, InterruptedRun):
            _end_processes(own=argv is None)
        with suppress(OSError):  # a terminal that went away may be why
            complain(str(error))
        return error.exit_code
    except (OSError, BotoCoreError, ClientError) as error:
        # A disk or S3 that refuses: its own message says what, and to which file.
        complain(message_line(error))
        return 1
    except (typer.Abort, KeyboardInterrupt):
        complain("interrupted")
        return 130
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Click's own
            return _usage_error(error)
        return report_crash(error)
    return code if isinstance(code, int) else 0


def _usage_error(error: Any) -> int:
    """A command line that cannot be read, as one line; nothing where its help was shown."""
    if message := error.format_message():
        context = getattr(error, "ctx", None)
        complain(f"{message} ({context.command_path} --help)" if context else message)
    return int(error.exit_code)


def _end_processes(own: bool) -> None:
    """End the Ray that was started here, and in a process of its ``own`` whatever is left."""
    if connect := sys.modules.get("dopsd.ray_cluster.connect"):
        connect.end_local()
    if own:  # such as a Ray that was only half started
        processes.kill(processes.descendants())
