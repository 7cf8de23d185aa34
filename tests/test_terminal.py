"""Text from users is text on a terminal: neither markup nor control, and one line stays one."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Progress, Report
from dopsd.shown import brief, cell, line, value, visible
from dopsd.terminal import complain, say, say_lines

HOSTILE = (
    "[bold]x[/] [link=http://h]y :cat: \x1b[31m\x1b]0;title\x07 \x9b2J \r\u202eabc\u2066\ud800 [V]"
)
SHOWN = (
    r"[bold]x[/] [link=http://h]y :cat: \x1b[31m\x1b]0;title\x07 \x9b2J \x0d"
    r"\u202eabc\u2066\ud800 [V]"
)


def test_a_line_is_printed_as_it_is_and_acts_on_nothing(capsys) -> None:
    say(HOSTILE)
    say("first\nDone: 3 steps")
    say_lines("| a |\n| b |\n")
    complain(HOSTILE + "\nnext")
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [SHOWN, r"first\nDone: 3 steps", "| a |", "| b |"]
    assert printed.err == f"dopsd: {SHOWN}\\nnext\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_text_as_text(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=300, color_system=None)
    progress = Progress(console)
    progress.show("prepare", Report([HOSTILE]))
    console.print(progress.panel("prepare", HOSTILE))
    assert out.getvalue().count(SHOWN) == 2
    assert "\x1b[31m" not in out.getvalue() and "\u202e" not in out.getvalue()


def test_an_encoding_without_the_character_is_no_error(monkeypatch) -> None:
    from dopsd import terminal

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    terminal.write_anything()
    say("猫")
    stream.flush()
    assert stream.buffer.getvalue().strip() == b"\\u732b"


def test_values_and_lines_are_bounded() -> None:
    assert brief("x" * 100, 100) == "x" * 100
    assert brief("a" * 99 + "z", 60).startswith("aaa") and brief("a" * 99 + "z", 60).endswith("z")
    assert len(brief("x" * 10**6, 60)) == 60
    for given in ("x" * 10**6, ["x" * 10**6], {"a": "x" * 10**6}, 10**6000, ["\x1b[31m"]):
        assert len(value(given)) <= 90 and value(given).isprintable()
    assert (value("fast"), value("it's"), value(3), value(None)) == (
        "'fast'",
        '"it\'s"',
        "3",
        "None",
    )
    assert len(line("x" * 10**6)) == 1500


def test_a_cell_is_one_cell_of_plain_text() -> None:
    text = cell("a|b\nc `d` *e* <b> [x](javascript:1) snake_case _f_ \\")
    assert text == (r"a\|b\\nc \`d\` \*e\* \<b\> \[x\](javascript:1) snake_case \_f\_ \\")


def test_controls_are_seen_and_lines_stay() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("a\0b\u2028c") == "a\\x00b\\u2028c"


def test_a_status_with_markup_is_drawn_as_it_is() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, color_system=None)
    counts = SimpleNamespace(trained=0, ready=0, in_flight=0, waiting=0)
    roles = {"learner": "[red]loading[/]"}
    shared = {"pictures": (0, 0), "roles": roles, "notices": []}
    status = SimpleNamespace(step=1, steps=2, latest={}, counts=counts, **shared)
    console.print(Progress(console).panel("train", cast(RunStatus, status)))
    assert "[red]loading[/]" in out.getvalue()
