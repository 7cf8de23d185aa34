"""All that needs a GPU, on one card: ``python -m tests.gpu``; prints a table of what it measured.

``--device cpu`` rehearses it: whatever is not CUDA's own runs on the CPU. Exit code 1 when a test
failed. Words behind ``--`` go to pytest, such as ``-- tests/gpu/test_kernels.py -k attention``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Column, Table

from dopsd.terminal import plain
from tests.gpu import DEVICE


class Measured:
    """Outcome, seconds and measured values of each test."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, float, list[str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
        outcome, seconds, values = self.rows.get(name, ("passed", 0.0, []))
        if report.outcome != "passed":
            outcome = report.outcome
            if report.skipped and isinstance(report.longrepr, tuple):
                values = [report.longrepr[2].removeprefix("Skipped: ")]
        if report.when == "call":
            values = [*values, *(f"{key} {value}" for key, value in report.user_properties)]
        self.rows[name] = outcome, seconds + report.duration, values

    def table(self) -> Table:
        table = Table(Column("test", overflow="fold"), "", "s", "measured", box=None)
        for name, (outcome, seconds, values) in self.rows.items():
            cells = (name, outcome, f"{seconds:.1f}", "; ".join(values))
            table.add_row(*map(plain, cells))
        return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("words", nargs="*", metavar="WORD", help="for pytest, behind --")
    options = parser.parse_args()
    os.environ[DEVICE] = options.device
    began, measured = time.monotonic(), Measured()
    folder = Path(__file__).parent
    code = pytest.main(
        ["-p", "no:cacheprovider", *(options.words or [str(folder)])],
        plugins=[measured],
    )
    console = Console(width=160)
    console.print(measured.table())
    console.print(plain(f"{_what(options.device)}: {time.monotonic() - began:.0f} s"))
    return int(code != 0)


def _what(device: str) -> str:
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return f"torch {torch.__version__} on the CPU"
    return f"torch {torch.__version__} on {torch.cuda.get_device_name()}"


if __name__ == "__main__":
    sys.exit(main())
