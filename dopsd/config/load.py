"""Run configs as text: YAML in, overrides on top, YAML out."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from dopsd import shown
from dopsd.config.messages import one_line
from dopsd.config.recipes import recipe_file
from dopsd.config.run import RunConfig
from dopsd.errors import ConfigError
from dopsd.readers import read_payload, yaml_value

MOST_BYTES = 2**20
"""Of a config."""
_PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width = False, 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    writer.dump(values, out)
    return out.getvalue()


def load_config(config: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file or a recipe by its name, apply ``section.key=value`` overrides, validate.

    Raises ConfigError with one line naming the key, what was given and what is allowed.
    """
    if config is None:
        return parse_config("", "", overrides)
    path = recipe_file(config)
    payload = read_payload(path, ConfigError, f"config {config}", MOST_BYTES)
    return parse_config(payload, str(config), overrides)


def stored_config(path: str, overrides: list[str] | None = None) -> RunConfig:
    """The config that a command of ours left at ``path``, local or s3://. Raises ConfigError as
    :func:`load_config`, naming the file wherever the fault lies in it and not in ``overrides``."""
    payload = read_payload(path, ConfigError, f"config {path}", MOST_BYTES)
    values = _mapping(payload, path)
    _forget_unheeded(values)
    try:
        return _overridden(values, path, overrides)
    except ConfigError as error:
        refused = error
    try:
        validated(values, path)
    except ConfigError as own:
        raise ConfigError(f"config {path}: {own}") from None
    raise refused


def parse_config(text: str | bytes, path: str, overrides: list[str] | None = None) -> RunConfig:
    """As :func:`load_config`, from the text of a file that is called ``path``."""
    return _overridden(_mapping(text, path), path, overrides)


def _overridden(values: dict[str, Any], path: str, overrides: list[str] | None) -> RunConfig:
    values = copy.deepcopy(values)
    for override in overrides or []:
        _apply(values, override)
    return validated(values, path)


def _forget_unheeded(values: dict[str, Any]) -> None:
    """Take out what an older dopsd stored without heeding it, and which is refused where it is
    given now."""
    data = values.get("data")
    prior = data.get("prior") if isinstance(data, dict) else None
    # Values are still the texts that they are written as.
    if isinstance(prior, dict) and prior.get("prompts") in (None, "null"):
        for key in ("count", "steps", "weight", "share"):
            prior.pop(key, None)


def _mapping(text: str | bytes, path: str) -> dict[str, Any]:
    try:
        values = yaml_value(text) or {}
    except ValueError as problem:
        raise ConfigError(f"config {path}: {problem}") from None
    if not isinstance(values, dict):
        kind = "a text" if isinstance(values, str) else "a list"
        raise ConfigError(f"config {path}: found {kind}, allowed: a mapping")
    return values


def validated(values: dict[str, Any], path: str) -> RunConfig:
    """The config of plain ``values``, those of ``path`` or made here. Raises ConfigError as
    :func:`load_config`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error, RunConfig)) from None
    except RecursionError:
        raise ConfigError(f"config {path}: nested too deeply, allowed: sections of keys") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; reads back to an equal RunConfig."""
    return dump_yaml(config.model_dump(mode="json"))


def as_text(value: Any) -> str:
    """A value as an override takes it behind its ``=``: JSON, which is YAML whatever a name holds,
    but for what JSON writes as two halves of a character."""
    return _PAIR.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), json.dumps(value))


def as_override(key: str, value: str) -> str:
    """``key=value`` as it is typed: plain where it reads back as what it is, else as JSON."""
    try:
        plain = yaml_value(value)
    except ValueError:
        plain = None
    same = type(plain) is str and plain == value
    return f"{key}={value if same else as_text(value)}"


def overridden(overrides: list[str] | None) -> dict[str, Any]:
    """What overrides say, by their dotted keys. Raises ConfigError as :func:`load_config`."""
    values: dict[str, Any] = {}
    for each in overrides or []:
        _apply(values, each)
    return dict(_leaves(values))


def _leaves(values: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{section}{key}.")
        yield f"{section}{key}", value


def shown_values(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, without credentials."""
    values: dict[str, Any] = shown.redacted(config.model_dump(mode="json"))
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {shown.value(override)}: allowed: section.key=value")
    name = shown.brief(key)
    try:
        value = yaml_value(text)
    except ValueError as problem:
        raise ConfigError(f"{name}: {problem}") from None
    node = values
    *sections, leaf = key.split(".")
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{name}: {shown.value(section)} is a value, not a section")
        node = child
    node[leaf] = value
