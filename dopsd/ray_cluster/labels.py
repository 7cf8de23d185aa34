"""Labels of nodes, and the choice among them that Ray's `label_selector` makes."""

from __future__ import annotations

from collections.abc import Mapping


def has_labels(labels: Mapping[str, str], chosen: Mapping[str, str]) -> bool:
    """Whether a node with ``labels`` is one of those ``chosen``: every key has its value, one of
    `in(a, b)`, or after `!` another one or none."""
    return all(_is_chosen(labels.get(key), choice) for key, choice in chosen.items())


def _is_chosen(value: str | None, choice: str) -> bool:
    wanted = choice.removeprefix("!")
    if wanted.startswith("in("):
        among = {each.strip() for each in wanted[len("in(") : -1].split(",")}
    else:
        among = {wanted}
    return (value in among) != choice.startswith("!")


def told(chosen: Mapping[str, str]) -> str:
    """In one line."""
    return ", ".join(f"{key}: {choice}" for key, choice in chosen.items())
