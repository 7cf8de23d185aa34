"""``docs/configuration.md``, the page of every config key: `dopsd config --reference` prints it."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dopsd.config.base import MOST
from dopsd.config.run import RunConfig

_HEAD = """# Configuration

Every key of a run config with its default, what is allowed and what it means. In a YAML file
sections nest; on the command line a key is given by its whole name, `dopsd train shapes
learner.lr=2e-4`. Whole numbers are at most 2147483647 where no bound is given. Unknown keys and
combinations that cannot be are refused in one line before anything starts. `dopsd config CONFIG`
prints a config with its defaults filled in.

This page is generated: `dopsd config --reference > docs/configuration.md`."""
_KINDS = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def reference() -> str:
    """Every key with its default, allowed values and meaning: a Markdown page without its last
    newline, one section of it for each section of the config."""
    return "\n\n".join([_HEAD, *_sections(RunConfig, "")])


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    rows, inner = [], []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner.append((f"{prefix}{name}", field.annotation))
        else:
            allowed = _kind(field.annotation) + _bounds(field.metadata)
            cells = (f"`{prefix}{name}`", _default(field), allowed, field.description)
            rows.append("| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |")
    title = f"`{prefix[:-1]}`" if prefix else "Top level"
    table = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows]
    yield "\n".join([f"## {title}", "", " ".join((model.__doc__ or "").split()), "", *table])
    for name, section in inner:
        yield from _sections(section, f"{name}.")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _bounds(metadata: Any) -> str:
    words = [
        f"{word} {value if isinstance(value, int) else f'{value:.12g}'}"
        for name, word in _BOUNDS.items()
        for entry in metadata
        if (value := getattr(entry, name, None)) is not None and value != MOST
    ]
    return "".join(f", {word}" for word in words)


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _KINDS:
        return _KINDS[annotation]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:  # one of several types carries bounds of its own
        return _kind(inner[0]) + "".join(_bounds(getattr(f, "metadata", [f])) for f in inner[1:])
    if origin in (Union, types.UnionType):
        return " or ".join("`null`" if kind is type(None) else _kind(kind) for kind in inner)
    if origin is dict:
        return f"{_kind(inner[0])}: {_kind(inner[1])}"
    if origin is list:
        return f"list of: {_kind(inner[0])}"
    return f"[{', '.join(_kind(kind) for kind in inner)}]"  # a tuple
