"""`dopsd caption`."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from dopsd.cli.data.look import data_config
from dopsd.cli.options import COUNT_MOST, Overrides, TakeOver, quiet
from dopsd.config.load import as_override, as_text
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.terminal import say

if TYPE_CHECKING:
    from dopsd.driver.caption.run import Captioned


def caption(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A folder of pictures or a list, local or s3://."),
    ],
    overrides: Overrides = None,
    key: Annotated[
        str, typer.Option(help="Caption key: short, medium, detailed, or another by --question.")
    ] = "detailed",
    vlm: Annotated[
        str | None,
        typer.Option(help="Folder or hub id; default: the judge's, Qwen3-VL-4B-Instruct."),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What to ask about each picture, in place of our words.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="What to call the main subject, e.g. '[V] dog'.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The list, a .jsonl; default: NAME-KEY.jsonl.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=COUNT_MOST, help="Actors that write, a GPU each if any.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    take_over: TakeOver = False,
) -> None:
    """Let a vision-language model write captions of SOURCE's pictures, as a list to train on.

    Other captions are kept beside them. Nothing in SOURCE is written. The same command goes on.
    KEY=VALUE are keys of the section data, e.g. data.caption_encoding=cp1252.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}, allowed: auto, cpu, cuda")
    from dopsd.data.sources.settings import ReadSettings

    config = data_config(source, overrides, ReadSettings)
    quiet()
    from dopsd.data.prepare.settings import prepare_settings
    from dopsd.driver.caption.run import DEFAULT_VLM, Asked
    from dopsd.driver.caption.run import caption as write_captions
    from dopsd.driver.monitoring.progress import Progress
    from dopsd.signals import interruptible

    asked = Asked(
        source if storage.is_remote(source) else os.path.abspath(source),
        key,
        prepare_settings(config.data, config.run.seed),
        vlm or DEFAULT_VLM,
        question,
        subject,
        out and os.path.expanduser(out),  # no shell expands it behind a `=`
        workers,
        device,  # type: ignore[arg-type]
    )
    with (
        interruptible(f"what is written stays in {asked.file}, and the same command goes on"),
        Progress() as progress,
    ):
        done = write_captions(
            asked, lambda line: progress.show("caption", line), say, take_over=take_over
        )
    if done.left_out:
        say("Left out, and noted:")
    for line in done.left_out:
        say(line)
    say(f"Captions: {done.file} ({done.listed} pictures, {done.written} written now)")
    say(f"Next: {shlex.join(_next_words(done, key))}")


def _next_words(done: Captioned, key: str) -> list[str]:
    words = ["dopsd", "train", "CONFIG", as_override("data.source", done.file)]
    if done.repeats:
        words.append(f"data.concept_weights={as_text(done.repeats)}")
    if others := [other for other in done.keys if other != key]:
        pairs = as_text([[others[0], key]])
        words += ["context.name=enhanced_prompt", f"context.prompt_pairs={pairs}"]
    return words
