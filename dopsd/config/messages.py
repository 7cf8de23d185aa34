"""What is wrong with a config, in one line that a user of a YAML file can act on."""

from __future__ import annotations

import difflib
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from dopsd import shown
from dopsd.config.elsewhere import ours

# pydantic's wording, shortened to what a user of a YAML file can act on.
_ALLOWED = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text (in quotes)",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a section of keys",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.12g}",
    "too_long": "at most {max_length} values",
    "literal_error": "{expected}",
}
_LONGEST, _LONGEST_KEY = 390, 64
"""Characters of a line whose values are lists, and of a key that may be a misspelt one."""
_SURELY = 0.85
"""Likeness from which on a key is a misspelt one, whatever others call theirs."""
_OF_WORDS = ("literal_error", "list_type", "tuple_type", "bool_parsing", "float_parsing")
RENAMED = {
    "deadline": "timeouts",
    "timeouts.start": "timeouts.startup",
    "timeouts.restarts": "inference.max_restarts",
    "learner.clip": "learner.max_grad_norm",
    "learner.restart_wait": "learner.restart_backoff_s",
    "learner.resize_seconds": "learner.resize_interval_s",
    "inference.slots": "inference.max_inflight",
    "preflight.noises": "preflight.num_noises",
    "data.weights": "data.concept_weights",
    "data.encoded": "data.context_cache",
}
"""What keys of older configs are called now."""


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of ``error`` as `key: what was given, allowed: what is`."""
    errors = error.errors()
    first = errors[0]
    key = _key(first["loc"], model)
    if first["type"] == "extra_forbidden":
        key = shown.line(".".join(str(part) for part in first["loc"]), shown.VALUE)
        siblings = _siblings(first["loc"], model)
        meant = _meant(key, first["loc"][-1], first.get("input"), siblings, model)
        hint = f" (did you mean {meant}?)" if meant else ""
        return f"{key}: unknown key{hint}; allowed: {', '.join(siblings)}"
    if first["type"] == "value_error":  # a section's own: it names the key
        return shown.line(first["ctx"]["error"], _LONGEST)
    if first["type"] == "missing":
        return f"{key}: missing"
    # A key of several types gives one error for each: name every type.
    allowed = [_allowed(entry) for entry in errors if _key(entry["loc"], model) == key]
    given = first.get("input")
    # Of a number what was written is shown, of a word a word.
    found = shown.value(given, quoted=first["type"] in _OF_WORDS)
    return f"{key}: {found}, allowed: {' or '.join(dict.fromkeys(allowed))}"


def _meant(
    key: str, part: int | str, given: Any, siblings: list[str], model: type[BaseModel]
) -> str | None:
    """What an unknown key is likely called: a misspelt one of its section, one of another section,
    or what another trainer has, of a whole section of its own the first that is known."""
    name = str(part)[:_LONGEST_KEY]
    if key in RENAMED:
        return RENAMED[key]
    if misspelt := difflib.get_close_matches(name, siblings, n=1, cutoff=_SURELY):
        return misspelt[0]
    if known := ours(name, model):
        return known
    if misspelt := difflib.get_close_matches(name, siblings, n=1):
        return misspelt[0]
    inner = list(given)[:_LONGEST_KEY] if isinstance(given, dict) else []
    return next((known for entry in inner if (known := ours(str(entry), model))), None)


def _key(location: tuple[int | str, ...], model: Any) -> str:
    """Dotted key of an error, without pydantic's tags of union members such as ``list[str]``."""
    parts = []
    for part in location:
        if part == "[key]" and get_origin(model) is dict:
            continue  # pydantic's tag of a dict's key
        is_section = isinstance(model, type) and issubclass(model, BaseModel)
        if is_section or isinstance(part, int) or get_origin(model) is dict:
            parts.append(str(part))
        field = model.model_fields.get(part) if is_section else None
        model = field.annotation if field else None if is_section else model
    return shown.line(".".join(parts), shown.VALUE)


def _allowed(entry: Any) -> str:
    if entry["type"] in _ALLOWED:
        return _ALLOWED[entry["type"]].format(**entry.get("ctx", {}))
    message: str = entry["msg"]
    return (message[0].lower() + message[1:]).removeprefix("input should be ")


def _siblings(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
