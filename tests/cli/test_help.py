"""`--help` of every command, whatever brackets its texts hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer

from dopsd.cli.main import app, main


def commands(group: typer.core.TyperGroup, before: tuple[str, ...] = ()) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        yield [*before, name]
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, (*before, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr()
    assert "Usage: " in said.out and "--help" in said.out and not said.err


def test_they_are_all_there() -> None:
    assert len(COMMANDS) > 35
