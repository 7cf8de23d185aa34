"""Texts as they are shown: what came from outside is text, whatever it looks like.

Neither a control character of a terminal nor a mark that turns the direction of writing gets
through, no secret, and nothing without end.
"""

from __future__ import annotations

import re
from typing import Any

from dopsd.credentials import redact

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Controls but tab and newline, marks of direction, separators of lines, halves of surrogates."""
_MARKUP = re.compile(r"[\\`*|<>\[\]~]|\b_|_\b")
"""What Markdown reads; an underscore only where it is no part of a word."""
_MOST_REDACTED = 20_000
"""Characters of either end of a text that is shortened anyway."""
VALUE, LINE = 80, 1500
"""Characters of a value in a message, and of a message."""


def visible(text: str) -> str:
    """``text`` with every character that would act and not be seen as its escape; tabs and
    newlines stay."""
    return _UNSEEN.sub(lambda match: _escape(match[0]), text)


def brief(text: str, most: int = VALUE) -> str:
    """``text``, or both ends of it when it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    note = f" ... ({len(text)} characters) ... "
    room = max(2, most - len(note))
    end = room // 3
    return text[: room - end] + note + text[-end:]


def line(text: Any, most: int = LINE) -> str:
    """Whatever it is as one line for people: without secrets, and no longer than ``most``."""
    text = str(text)
    if len(text) > 3 * _MOST_REDACTED:
        note = f" ... ({len(text)} characters) ... "
        text = text[:_MOST_REDACTED] + note + text[-_MOST_REDACTED:]
    return brief(visible(redact(text)).replace("\n", "\\n"), most)


def value(given: Any, quoted: bool = True) -> str:
    """A value that somebody gave, in a message: ``quoted`` shows text in quotes."""
    if isinstance(given, str):
        text = line(given, VALUE)
        mark = '"' if "'" in text else "'"
        return f"{mark}{text}{mark}" if quoted else text
    try:
        return line(repr(given), VALUE)
    except (ValueError, RecursionError):  # digits or levels without end
        return f"a {type(given).__name__} without end"


def cell(text: Any) -> str:
    """Whatever it is as a cell of a Markdown table: on one line, and of no markup."""
    return _MARKUP.sub(r"\\\g<0>", line(text))


def redacted(record: Any) -> Any:
    """Plain values (mappings, lists, texts, numbers) without secrets, keys included."""
    if isinstance(record, dict):
        return {redacted(key): redacted(inner) for key, inner in record.items()}
    if isinstance(record, list | tuple):
        return [redacted(inner) for inner in record]
    return redact(record) if isinstance(record, str) else record


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
