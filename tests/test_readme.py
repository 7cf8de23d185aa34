"""What the README says and tells to type: its length, its table, commands that go together."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, ROOT, blocks, commands

README = ROOT / "README.md"
TEXT = README.read_text()
ORDER = (
    "Two commands",
    "What it takes",
    "Your own images",
    "Use the result",
    "More GPUs",
    "How good is it?",
    "When something dies",
    "A tour of the code",
)


def values(command: str, option: str) -> set[str]:
    """What ``option`` is given in the lines of ``dopsd command`` of README and docs."""
    lines = [line for page in PAGES for line in commands(page, f"dopsd {command}")]
    return {value for line in lines for value in re.findall(rf"{option}[= ](\S+)", line)}


def test_it_fits_a_screen_or_three_in_the_order_in_which_a_user_wants_it():
    assert len(TEXT.splitlines()) <= 190
    assert tuple(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) == ORDER


def test_status_stands_beside_the_first_promise():
    first = TEXT.partition("## ")[0]
    assert "**Status.**" in first and "Nothing has run on\n> Z-Image-Turbo" in first


def test_its_own_images_take_25_lines():
    section = TEXT.partition("## Your own images\n")[2].partition("\n## ")[0]
    # What is read and typed: the lines up to the last command.
    assert len(section.rpartition("```\n")[0].strip().splitlines()) <= 25


def test_the_two_commands_are_those_of_a_clone():
    demo, tests = blocks(README, "bash")[:2]
    assert demo == "python -m pip install -c constraints.txt -e . && dopsd train shapes\n"
    assert tests.endswith("-e '.[test]' && python -m pytest -m \"not nightly\"\n")


def test_every_recipe_stands_in_the_table_of_what_it_takes():
    rows = TEXT.partition("## What it takes")[2].partition("## ")[0]
    named = set(re.findall(r"`(\w+)`(?=[,| ])", re.sub(r"^\| recipe.*$", "", rows, flags=re.M)))
    recipes = {file.stem for file in (ROOT / "configs").glob("*.yaml")}
    assert len(recipes) == 16 and recipes == named & recipes


def test_preflight_alone_has_a_run_folder_of_its_own():
    """One that holds a run is refused."""
    assert values("preflight", "run.folder")
    assert not values("preflight", "run.folder") & values("train", "run.folder")


def test_prior_prompts_of_the_evaluation_are_not_trained_on():
    trained = {
        file
        for page in PAGES
        for file in re.findall(r"data\.prior\.prompts=([\w.-]+)", page.read_text())
    }
    assert trained and values("evaluate", "--prior")
    assert not trained & values("evaluate", "--prior")


def test_what_the_commands_write_is_ignored():
    """`ray job submit --working-dir .` would upload it."""
    ignored = {f"/{line.lstrip('/')}" for line in (ROOT / ".gitignore").read_text().split()}
    local = [path for path in values("prepare", "data.shards") if "://" not in path]
    shards = {f"/{path.split('/')[0]}/" for path in local}
    out = {f"/{path.split('/')[0]}/" for path in values("evaluate", "--out")}
    # The last two are where `generate` and `evaluate` write by default.
    assert shards | out | {"/generated/", "/evaluation/"} <= ignored
