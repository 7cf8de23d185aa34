"""What a benchmark prints."""

from __future__ import annotations

from collections.abc import Sequence

from dopsd.experiments.benchmark.run import PLAIN, Measured


def markdown(rows: Sequence[Measured]) -> str:
    """A line for each row; ratios are to the plain loop's."""
    plain = next(row for row in rows if row.name == PLAIN)
    head = (
        "| | CPU-s a sample | x plain | s a sample | x plain | images/s | all processes, MB (PSS) "
        "| largest process by role, MB | busy by role | publication, s |"
    )
    lines = [head, "| --- |" + " ---: |" * 6 + " --- | --- | ---: |"]
    for row in rows:
        cells = [
            row.title,
            f"{row.cpu_seconds_per_sample:.3f}",
            f"{row.cpu_seconds_per_sample / plain.cpu_seconds_per_sample:.2f}",
            f"{row.seconds_per_sample:.3f}",
            f"{row.seconds_per_sample / plain.seconds_per_sample:.2f}",
            f"{1 / row.seconds_per_sample:.2f}",
            f"{row.peak_mb:.0f}",
            ", ".join(f"{role} {value:.0f}" for role, value in row.peak_mb_by_role.items()),
            ", ".join(f"{role} {value:.2f}" for role, value in row.busy.items()),
            "" if row.publish_seconds is None else f"{row.publish_seconds:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
