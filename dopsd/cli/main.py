"""The command line: `dopsd train`, `preflight`, `report` and more; `dopsd --help` lists them."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from typer.core import TyperGroup

from dopsd import __version__, processes
from dopsd.cli.evaluate import evaluate
from dopsd.cli.generate import generate
from dopsd.cli.preflight import preflight
from dopsd.cli.prepare import prepare
from dopsd.cli.reproduce import app as reproduce
from dopsd.cli.run import checkpoint, report, show_config, stats, verify
from dopsd.cli.shapes import app as shapes
from dopsd.cli.train import train
from dopsd.errors import DopsdError, InterruptedRun
from dopsd.signals import handled, interruptible


class _Commands(TyperGroup):
    """Whichever command runs, a signal ends it with one line."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible("the same command begins again"):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Tune step-distilled text-to-image models by on-policy self-distillation (D-OPSD).",
    pretty_exceptions_enable=False,
)


app.command()(train)
app.command()(prepare)
app.command()(generate)
app.command("config")(show_config)
app.command()(stats)
app.command()(preflight)
app.command()(evaluate)
app.command()(report)
app.command()(verify)
app.command()(checkpoint)
app.add_typer(shapes, name="shapes", help="The embedded tiny world.")
app.add_typer(reproduce, name="reproduce", help="The paper's comparison, trained and judged here.")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 1, a signal's end
    one line and 128 + its number."""
    with handled(own_process=argv is None):
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    try:
        code = app(args=argv, prog_name="dopsd", standalone_mode=False)
    except DopsdError as error:
        if isinstance(error, InterruptedRun):
            _end_processes(own=argv is None)
        with suppress(OSError):  # a terminal that went away may be why
            print(f"dopsd: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except (OSError, BotoCoreError, ClientError) as error:
        # A disk or S3 that refuses: its own message says what, and to which file.
        print(f"dopsd: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        print("dopsd: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # Click's own usage errors know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else 0


def _end_processes(own: bool) -> None:
    """End the Ray that was started here, and in a process of its ``own`` whatever is left."""
    if connect := sys.modules.get("dopsd.ray_cluster.connect"):
        connect.end_local()
    if own:  # such as a Ray that was only half started
        processes.kill(processes.descendants())
