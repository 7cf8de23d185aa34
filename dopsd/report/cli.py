"""``dopsd report``: write the page of a run."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Run folder (local or s3://), finished or not.")],
) -> None:
    """Write the run page, one self-contained HTML file, into the run folder."""
    from dopsd.report.page import write_report

    print(write_report(run))
