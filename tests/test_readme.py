"""What the README tells to type goes together."""

from __future__ import annotations

import re
from pathlib import Path

README = Path("README.md").read_text()
COMMANDS = re.sub(r"\\\n\s*", " ", README)


def values(command: str, option: str) -> set[str]:
    """What ``option`` is given in the README's lines of ``dopsd command``."""
    lines = re.findall(rf"^dopsd {command}\b.*", COMMANDS, re.MULTILINE)
    return {found for line in lines for found in re.findall(rf"{option}[= ](\S+)", line)}


def test_preflight_alone_has_a_run_folder_of_its_own():
    """One that holds a run is refused."""
    assert values("preflight", "run.folder")
    assert not values("preflight", "run.folder") & values("train", "run.folder")


def test_prior_prompts_of_the_evaluation_are_not_trained_on():
    trained = set(re.findall(r"data\.prior\.prompts=([\w.-]+)", README))
    assert trained and values("evaluate", "--prior")
    assert not trained & values("evaluate", "--prior")


def test_what_the_readme_writes_is_ignored():
    """`ray job submit --working-dir .` would upload it."""
    ignored = set(Path(".gitignore").read_text().split())
    shards = {f"/{each.split('/')[0]}/" for each in values("prepare", "data.shards")}
    out = {f"/{each.split('/')[0]}/" for each in values("evaluate", "--out")}
    # The last two are where `generate` and `evaluate` write by default.
    assert shards | out | {"/generated/", "/evaluation/"} <= ignored
