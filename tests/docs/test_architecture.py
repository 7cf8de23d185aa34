"""The stops of docs/architecture.md exist: each names a file and a function or class in it."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
STOPS = re.findall(r"^\| \d+ \| `(dopsd/[\w/]+\.py)` \| `([\w.]+)` \|", PAGE, re.MULTILINE)


def test_each_stop_of_the_micro_batch_exists() -> None:
    assert len(STOPS) >= 20
    for file, name in STOPS:
        scope: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
        for part in name.split("."):
            named = [
                node
                for node in scope
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
            ]
            assert named, f"{file} has no {name}"
            scope = named[0].body


def test_the_layers_shown_are_those_that_are_held() -> None:
    contract = (ROOT / ".importlinter").read_text().partition("layers =\n")[2]
    held = [set(line.split(" | ")) for line in contract.partition("\n\n")[0].split("\n    ")]
    shown = re.search(r"^```\ncli .*?^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown
    lines = [line.partition("   ")[0] for line in shown[0].splitlines()[1:-1]]
    assert [set(line.split(" | ")) for line in lines] == [
        {name.strip() for name in layer} for layer in held if layer != {"    __main__"}
    ]
