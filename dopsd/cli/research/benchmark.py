"""`dopsd benchmark`: the trainer beside a plain loop."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dopsd.cli.options import quiet
from dopsd.terminal import say, say_lines


class SizeName(StrEnum):
    """Keys of ``experiments.benchmark.sizes.SIZES``, which takes seconds to import."""

    TINY = "tiny"
    MEDIUM = "medium"


def benchmark(
    size: Annotated[
        SizeName,
        typer.Option(help="tiny: the demo's base; medium: 60 million weights, compute dominates."),
    ] = SizeName.TINY,
    out: Annotated[
        str, typer.Option(help="Local folder for runs, logs and benchmark.json.")
    ] = "runs/benchmark",
    again: Annotated[
        bool, typer.Option("--again", help="Measure rows anew that are there already.")
    ] = False,
) -> None:
    """Train the same samples by a plain loop and by dopsd, fused and disaggregated at lag 0 and 1.

    Prints seconds of CPU and of the clock for a sample at steady state, memory, busy shares and
    publication. On the CPU alone. Rows that were measured in that folder with the same settings are
    kept, so that the same command goes on where it ended.
    """
    quiet()
    from dopsd.experiments.benchmark.run import benchmark as measure
    from dopsd.experiments.benchmark.table import markdown
    from dopsd.ownership.lease import claimed

    with claimed(out, "--out", tell=say):
        found = measure(size.value, out, say, again)
    say_lines(markdown(found))
