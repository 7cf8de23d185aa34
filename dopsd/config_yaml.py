"""YAML as configs use it: plain values, and no key twice."""

from __future__ import annotations

from typing import Any

import yaml


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key that a mapping has already."""


class _Loader(yaml.SafeLoader):
    """YAML's own loader takes the last of two equal keys, and a setting is lost in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merge keys (<<) are resolved: what is merged may be overridden.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in lines:
                raise DuplicateKeyError(
                    problem=f"key {key.value!r} is given twice, first in line "
                    f"{lines[key.tag, key.value]}; allowed: once",
                    problem_mark=key.start_mark,
                )
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node


def load_yaml(text: str) -> Any:
    """The plain value of a document. Raises yaml.YAMLError, of which DuplicateKeyError is one."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def yaml_problem(error: Exception) -> str:
    """What is wrong, in one line, with its place."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "not YAML: " + " ".join(str(error).split())
    problem = getattr(error, "problem", None)
    what = "" if isinstance(error, DuplicateKeyError) else "not YAML: "
    return f"{what}line {mark.line + 1}, column {mark.column + 1}: {problem}"
