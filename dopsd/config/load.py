"""Run configs as text: YAML in, overrides on top, YAML out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.resolver import VersionedResolver

from dopsd.config.messages import one_line
from dopsd.config.recipes import recipe_text
from dopsd.config.run import RunConfig
from dopsd.credentials import redact
from dopsd.errors import ConfigError, message_line


class _TextResolver(VersionedResolver):
    """Reads every plain value but null as text, so that nothing is guessed from its looks: the type
    of its key decides what ``7e12345``, ``nan`` or ``off`` is."""

    def add_version_implicit_resolver(
        self, version: Any, tag: Any, regexp: Any, first: Any
    ) -> None:
        if str(tag).endswith((":null", ":merge")):
            super().add_version_implicit_resolver(version, tag, regexp, first)


def load_yaml(text: str) -> Any:
    """The value of a document, of texts, lists and mappings. Raises YAMLError."""
    parser = YAML(typ="safe", pure=True)
    parser.Resolver = _TextResolver
    return parser.load(text)


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width = False, 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    writer.dump(values, out)
    return out.getvalue()


def yaml_problem(error: Exception) -> str:
    """What is wrong, in one line, with its place."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {message_line(error)}"
    position = f"line {mark.line + 1}, column {mark.column + 1}"
    problem = " ".join(str(getattr(error, "problem", "")).split())
    if isinstance(error, DuplicateKeyError):
        # The values may be secrets, and are told of sections as if they were empty.
        return f"{position}: {problem.partition(' with value')[0]}; allowed: once"
    return f"not YAML: {position}: {problem}"


def load_config(config: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file or a recipe by its name, apply ``section.key=value`` overrides, validate.

    Raises ConfigError with one line naming the key, what was given and what is allowed.
    """
    if config is None:
        return parse_config("", "", overrides)
    try:
        text = recipe_text(config)
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {config}: {yaml_problem(error)}") from error
    return parse_config(text, str(config), overrides)


def parse_config(text: str, path: str, overrides: list[str] | None = None) -> RunConfig:
    """As :func:`load_config`, from the text of a file that is called ``path``."""
    try:
        values: Any = load_yaml(text) or {}
    except YAMLError as error:
        raise ConfigError(f"config {path}: {yaml_problem(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: found {type(values).__name__}, allowed: a mapping")
    for override in overrides or []:
        _apply(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error, RunConfig)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; reads back to an equal RunConfig."""
    return dump_yaml(config.model_dump(mode="json"))


def shown_values(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, without credentials."""
    values: dict[str, Any] = _redacted(config.model_dump(mode="json"))
    return values


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {redact(key): _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: allowed: section.key=value")
    try:
        value = load_yaml(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{key}: {yaml_problem(error)}") from error
    except YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not YAML") from error
    node = values
    *sections, leaf = key.split(".")
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section!r} is a value, not a section")
        node = child
    node[leaf] = value
