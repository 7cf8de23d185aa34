"""Pages lead where they say: links, anchors, files, commands, imports."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dopsd.cli.main import app
from dopsd.config import load_config
from tests.docs.pages import DOCS, PAGES, ROOT, anchors, blocks, commands, links, name, prose

FOLDERS = ("dopsd", "tests", "configs", "cluster", "jobs", "docs")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(path), f"{name(page)}: {target}"
        if page in DOCS:
            assert path.is_relative_to(ROOT / "docs"), f"{target}: not on the site"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_prose_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # it names files of its time
        return
    for file in re.findall(r"`([\w./-]+/[\w./-]*)`(?! \(new\))", prose(page)):
        if file.split("/")[0] in FOLDERS:
            assert (ROOT / file).exists(), f"{name(page)}: {file}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imports_of_examples_resolve(page: Path) -> None:
    for code in blocks(page, "python"):
        for line in re.findall(r"^from dopsd.*", code, re.MULTILINE):
            exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_those_of_the_program(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    inline = re.findall(r"`(dopsd \w[^`]*?)`", prose(page).replace("\n", " "))
    for line in [*commands(page, "dopsd"), *inline]:
        check(shlex.split(line.replace(" ...", "")), line)
    for line in commands(page, "ray job submit"):
        script, *words = shlex.split(line.partition(" -- python ")[2])
        assert (ROOT / script).is_file(), line
        check(["dopsd", Path(script).stem, *words], line)


def check(words: list[str], line: str) -> None:
    """A line of the docs against the command line: every option and every key is known."""
    words = [word for word in words[1:] if word not in (">", "docs/configuration.md")]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, line
        command, words = command.commands[words[0]], words[1:]
    options = {option for entry in command.params for option in entry.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in {*options, "--help"}, f"{line}: {word}"
    if command.name in ("train", "prepare", "preflight", "config"):
        with command.make_context(command.name, list(words), resilient_parsing=True) as context:
            given = [context.params["config"], *(context.params["overrides"] or [])]
        config = next((word for word in given if word and "=" not in word), "shapes")
        if config.islower() and "/" not in config:  # neither a placeholder nor a run's own
            load_config(config, [word for word in given if word and "=" in word])
