"""A config as a file for people: what is set, each key with its meaning beside it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.config.base import Section
from dopsd.config.load import dump_yaml
from dopsd.driver.own_recipe.answers import BASES, Answers
from dopsd.plan import Plan, comment

_WIDTH = 100
_FUSED_LEAVES = ("rollout", "teacher", "inference")
"""Sections of roles that a fused run does not have."""


def recipe_text(answers: Answers, plan: Plan, commands: Sequence[str]) -> str:
    """The file: what it is for, the commands, what is planned, and every key that is set."""
    config = plan.config
    head = [
        f"{answers.concept}, on {answers.base}: written by dopsd init for "
        f"{answers.card.name if answers.card else 'CPUs'}, {answers.cluster}.",
        *(f"    {command}" for command in commands),
        f"Settings not named there are those of the recipe {BASES[answers.base]} (dopsd config "
        f"{BASES[answers.base]}).",
        "Every key is explained by `dopsd config --reference`.",
    ]
    lines = [f"# {shown.line(line)}".rstrip() for line in head]
    lines += ["#", comment(plan)] if answers.card else []
    return "\n".join([*lines, "", *_lines(config, "")]).rstrip() + "\n"


def _lines(section: Section, indent: str) -> Iterator[str]:
    fused = isinstance(section, RunConfig) and section.source == "fused"
    for name in section.model_fields:
        if name not in section.model_fields_set or (fused and name in _FUSED_LEAVES):
            continue
        value = getattr(section, name)
        field = type(section).model_fields[name]
        if isinstance(value, Section):
            if value.model_fields_set:
                yield f"{indent}# {' '.join((type(value).__doc__ or '').split())}"
                yield f"{indent}{name}:"
                yield from _lines(value, f"{indent}  ")
        else:
            yield from _entry(f"{indent}{name}: ", value, _meaning(field.description or ""))
        if not indent:
            yield ""


def _entry(key: str, value: Any, meaning: str) -> Iterator[str]:
    line = key + _scalar(value)
    if len(line) + len(meaning) + 3 <= _WIDTH:
        yield f"{line} # {meaning}"
        return
    indent = " " * (len(key) - len(key.lstrip()))
    for part in textwrap.wrap(meaning, _WIDTH - len(indent) - 2):
        yield f"{indent}# {part}"
    yield line


def _scalar(value: Any) -> str:
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False)  # which YAML reads
    return dump_yaml({"k": value}).removeprefix("k:").strip()


def _meaning(description: str) -> str:
    """Its first sentence."""
    return re.split(r"(?<!e\.g)\.(?: (?=[A-Z`])|$)", description, maxsplit=1)[0]
