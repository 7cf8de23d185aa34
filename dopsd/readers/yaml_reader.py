"""The one reader of YAML: texts, lists and mappings, of which nothing is guessed from its looks."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.resolver import VersionedResolver

from dopsd import shown
from dopsd.errors import message_line
from dopsd.readers.text import DEPTH, check_unicode, decoded

MOST_BYTES = 2**20
"""Of a text of YAML."""
MOST_VALUES = 100_000
"""Of a document, those behind aliases counted as often as they stand there."""


class PlainNull(str):
    """What is written as nothing, ``~`` or ``null``, without quotes: None for a key that takes it,
    and for another the text that it is."""


class _TextResolver(VersionedResolver):
    """Reads every plain value but null as text: the type of its key decides what ``7e12345``,
    ``nan`` or ``off`` is."""

    def add_version_implicit_resolver(
        self, version: Any, tag: Any, regexp: Any, first: Any
    ) -> None:
        if str(tag).endswith((":null", ":merge")):
            super().add_version_implicit_resolver(version, tag, regexp, first)


class _TextConstructor(SafeConstructor):
    """Takes no tag that asks for another type."""

    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in SafeConstructor.yaml_constructors.items()
        if str(tag).endswith((":str", ":seq", ":map"))
    }

    def construct_null(self, node: Any) -> Any:
        return PlainNull(self.construct_scalar(node))

    def construct_merge(self, node: Any) -> Any:
        return str(self.construct_scalar(node))  # where it is a value, and no key

    def refuse(self, node: Any) -> Any:
        raise ConstructorError(None, None, f"tag {node.tag}, allowed: none", node.start_mark)


_TextConstructor.add_constructor("tag:yaml.org,2002:null", _TextConstructor.construct_null)
_TextConstructor.add_constructor("tag:yaml.org,2002:merge", _TextConstructor.construct_merge)
_TextConstructor.add_constructor(None, _TextConstructor.refuse)


def yaml_value(payload: bytes | str) -> Any:
    """The value of a document. Raises ValueError with what is wrong and its place."""
    if len(payload) > MOST_BYTES:
        raise ValueError(f"{len(payload)} bytes, allowed: {MOST_BYTES}")
    text = decoded(payload) if isinstance(payload, bytes) else payload
    if _open_brackets(text) > 5 * DEPTH:  # the parser would take seconds to come to its end
        raise ValueError("not YAML: nested too deeply")
    parser = YAML(typ="safe", pure=True)
    parser.Resolver, parser.Constructor = _TextResolver, _TextConstructor
    try:
        value = parser.load(text)
        _check_size(value)
    except RecursionError:
        raise ValueError("not YAML: nested too deeply") from None
    except Exception as error:  # ruamel raises many kinds
        raise ValueError(_problem(error)) from None
    check_unicode(value)
    return value


def _open_brackets(text: str) -> int:
    """How many are open at once, those within quotes counted too."""
    signs = {"[": 1, "{": 1, "]": -1, "}": -1}
    return max(accumulate(signs.get(character, 0) for character in text), default=0)


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {shown.line(message_line(error), 200)}"
    position = f"line {mark.line + 1}, column {mark.column + 1}"
    problem = " ".join(str(getattr(error, "problem", "")).split())
    if isinstance(error, DuplicateKeyError):
        # The values may be secrets, and are told of sections as if they were empty.
        problem = problem.partition(" with value")[0]
        return f"{position}: {shown.line(problem, 200)}; allowed: once"
    return f"not YAML: {position}: {shown.line(problem, 200)}"


def _check_size(value: Any) -> None:
    """Raises ValueError for what holds itself, is nested too deeply, or grows by aliases."""
    sizes: dict[int, int] = {}

    def size(inner: Any, level: int) -> int:
        if not isinstance(inner, dict | list):
            return 1
        if level > DEPTH:
            raise ValueError("nested too deeply")
        if id(inner) not in sizes:
            sizes[id(inner)] = MOST_VALUES  # until it is known: of what holds itself it never is
            entries = inner.values() if isinstance(inner, dict) else inner
            sizes[id(inner)] = 1 + sum(size(entry, level + 1) for entry in entries)
        if sizes[id(inner)] > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        return sizes[id(inner)]

    size(value, 0)
