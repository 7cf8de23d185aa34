"""The command line: `dopsd train`, `preflight`, `report` and more; `dopsd --help` lists them."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from dopsd import __version__
from dopsd.cli_options import ConfigPath, Overrides, quiet
from dopsd.config import RunConfig, dump_config, load_config, reference
from dopsd.errors import DopsdError
from dopsd.evaluation.cli import evaluate
from dopsd.preflight_cli import preflight
from dopsd.report.cli import report
from dopsd.reproduce.cli import app as reproduce
from dopsd.run_cli import checkpoint, resumed_config, verify
from dopsd.shapes.cli import app as shapes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Tune step-distilled text-to-image models by on-policy self-distillation (D-OPSD).",
    pretty_exceptions_enable=False,
)

app.add_typer(shapes, name="shapes", help="The embedded tiny world.")
app.add_typer(reproduce, name="reproduce", help="The paper's comparison, trained and judged here.")
app.command()(preflight)
app.command()(evaluate)
app.command()(report)
app.command()(verify)
app.command()(checkpoint)


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Run config, a YAML file.", metavar="CONFIG", show_default="configs/shapes.yaml"
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on from the newest checkpoint of this run folder."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run folder, even an unfinished run.")
    ] = False,
) -> None:
    """Train: shards are prepared when missing, then roll out, score, learn, export a LoRA.

    With --resume, CONFIG is the run's own unless it is given.
    """
    if resume is not None:
        run = resumed_config(resume, config, overrides)
    else:
        run = load_config(config or "configs/shapes.yaml", overrides)
    quiet()
    from dopsd.runtime.launch import train as launch
    from dopsd.runtime.progress import Progress, clock
    from dopsd.runtime.run_log import loss_steps

    console = Console()
    with Progress(console) as progress:
        summary = launch(run, progress.show, resume=resume is not None, replace=overwrite)
    console.print(
        f"\n[bold]Done:[/bold] {summary.steps} steps in {clock(summary.seconds)} "
        f"(first step after {clock(summary.seconds_to_first_step)}); loss "
        f"{summary.first_loss:.4f} -> {summary.last_loss:.4f}, means of the first and last "
        f"{loss_steps(summary.steps)} steps",
        soft_wrap=True,
    )
    adapted = ", ".join(f"{target} x{count}" for target, count in summary.adapted.items())
    for what, value in (
        ("LoRA (diffusers and ComfyUI)", summary.lora),
        ("modules trained beside it", summary.modules),
        ("transformer (diffusers)", summary.transformer),
        ("adapted modules", adapted),
        ("contact sheet", summary.sheet),
        ("run page", summary.page),
        ("metrics, config", summary.folder),
    ):
        if value is not None:
            console.print(f"  {what:<29} {value}", highlight=False, markup=False, soft_wrap=True)
    for problem in summary.problems:
        console.print(f"  afterwards: {problem}", highlight=False, markup=False, soft_wrap=True)
    console.print("Next, draw with it:")
    command = _next_command(run, summary.lora, summary.modules, summary.transformer)
    console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def prepare(
    config: ConfigPath = "configs/shapes.yaml",
    overrides: Overrides = None,
    encode: Annotated[
        bool,
        typer.Option(
            "--encode", help="Encode all contexts once, so that training loads no encoder."
        ),
    ] = False,
) -> None:
    """Turn data.source into prepared shards (data.shards) and a manifest.

    With --encode, shards that are there already are kept.
    """
    run = load_config(config, overrides)
    quiet()
    from dopsd.runtime.cluster import connect
    from dopsd.runtime.data import prepare_shards, refuse_missing_source, refuse_unwritable
    from dopsd.runtime.encoded import encode_contexts
    from dopsd.runtime.progress import Progress

    console = Console()
    refuse_unwritable(run)
    refuse_missing_source(run)
    connect()
    with Progress(console) as progress:
        if encode:
            lines = encode_contexts(run, progress.show)
        else:
            manifest = prepare_shards(run, lambda status: progress.show("prepare", status))
            lines = manifest.summary_lines()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Shards: {run.shards}", highlight=False, markup=False)
    words = ["dopsd", "train", config, *(overrides or [])]
    if not any(word.startswith("run.folder=") for word in words):
        words.append("run.folder=runs/NAME")  # the config's own may hold a run already
    command = shlex.join(words)
    console.print(f"Next: {command}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One picture per prompt.")],
    base: Annotated[str, typer.Option(help="Pipeline folder, hub id or `shapes`.")] = "shapes",
    family: Annotated[str, typer.Option(help="Model family.")] = "z_image",
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base.")] = None,
    lora: Annotated[
        str | None, typer.Option(help="LoRA file or run folder, local or s3://.")
    ] = None,
    modules: Annotated[
        str | None, typer.Option(help="File of modules trained beside the LoRA.")
    ] = None,
    transformer: Annotated[
        str | None,
        typer.Option(help="Folder of a transformer in place of the base's, local or s3://."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Reference picture (repeatable, in order), shown with every prompt."),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder of the pictures.")] = "generated",
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 4,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; default by base.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; default by base.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture i uses seed + i.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Draw pictures with the base, or with what was trained of it."""
    quiet()
    import torch

    from dopsd import storage
    from dopsd.errors import ConfigError
    from dopsd.evaluation.candidates import as_trained, candidates
    from dopsd.evaluation.generate import generate as draw
    from dopsd.evaluation.generate import png_bytes, read_reference
    from dopsd.models import FAMILIES
    from dopsd.models.base import DTYPES

    for option, value, allowed in (("family", family, FAMILIES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ConfigError(f"--{option}: {value!r}, allowed: {', '.join(allowed)}")
    if lora is not None and not lora.endswith(".safetensors"):
        (run,) = map(as_trained, candidates([lora]))
        lora, modules = next(iter(run.loras), None), modules or run.modules
        transformer = transformer or run.transformer
    side = 32 if base == "shapes" else 1024
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = draw(
        FAMILIES[family](base, revision, "--base"),
        prompts,
        lora,
        steps,
        height or side,
        width or side,
        seed,
        dtype,
        device,
        [read_reference(path) for path in reference or []],
        modules,
        transformer,
    )
    for number, picture in enumerate(pictures):
        path = storage.join(out, f"{number:03d}.png")
        storage.write_bytes(path, png_bytes(picture))
        Console().print(f"{path}  {prompts[number]}", highlight=False, markup=False, soft_wrap=True)


@app.command("config")
def show_config(
    config: ConfigPath = "configs/shapes.yaml",
    overrides: Overrides = None,
    keys: Annotated[
        bool, typer.Option("--reference", help="Every key with default and meaning.")
    ] = False,
) -> None:
    """Print the resolved config, or the reference of every key."""
    print(reference() if keys else dump_config(load_config(config, overrides)).rstrip())


@app.command()
def stats(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs.")],
) -> None:
    """Print medians of finished runs side by side: seconds, idle fractions, memory by role."""
    from dopsd.report.stats import stats_table

    print(stats_table(runs))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _next_command(run: RunConfig, *trained: str | None) -> str:
    """``trained``: LoRA, modules and transformer, what there is of them."""
    words = ["dopsd", "generate"]
    concept = (run.data.source or "").removeprefix("shapes:")
    drawn = {"ring": "a red [V] on teal", "bars": "a red [V] square on teal"}
    words += [drawn.get(concept, "your prompt")]
    if run.model.base != "shapes":
        words += ["--base", run.model.base, "--family", run.model.family]
        words += ["--dtype", run.model.dtype]
        words += ["--revision", run.model.revision] if run.model.revision else []
    steps = run.preview.steps or run.method.steps
    words += ["--steps", str(steps)]
    for option, path in zip(("--lora", "--modules", "--transformer"), trained):
        words += [] if path is None else [option, path]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 1."""
    try:
        code = app(args=argv, prog_name="dopsd", standalone_mode=False)
    except DopsdError as error:
        print(f"dopsd: {error}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
