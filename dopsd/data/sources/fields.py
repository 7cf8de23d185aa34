"""What the fields of a sample may hold, whichever source they come from."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dopsd.credentials import holds_credentials
from dopsd.data.sources.rows import CAPTION_KEY, ByteRange, SourceRow
from dopsd.shown import line

FIELDS = ("image", "captions", "caption", "text", "prompt", "id", "concept", "references", "mask")
CAPTION_FIELDS = ("prompt", "text", "caption", "captions")
"""Where captions may stand; of several texts without a key the last one counts."""

MAX_CAPTION = 10_000
"""Characters of a caption; encoders cut at 512 tokens or thereabouts."""
MAX_CAPTIONS = 64
"""Captions of a sample."""
MAX_NAME = 1024
"""Characters of an id, a concept or a caption key."""
MAX_CAPTION_BYTES = 4 * MAX_CAPTION + 16

_BREAKS = re.compile("\\s*[\t\n\r\x85\u2028\u2029]\\s*")
"""Ends of lines and tabs, with the blanks around them."""
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]+\|>")
"""Tokens such as <|im_end|> end a turn or stand for an image; encoders refuse them too."""
Keep = Callable[[bytes], ByteRange]
"""Takes the bytes of a picture that stands in the row itself."""


def fill(
    row: SourceRow,
    values: Mapping[str, Any],
    locate: Callable[[str], str],
    empty: Counter[str] | None = None,
    keep: Keep | None = None,
    masks: bool = True,
    texts: bool = False,
) -> None:
    """Read one record into ``row``; raises ValueError with the reason of a quarantine.

    ``locate`` turns a path as it is given into one that can be opened, or raises ValueError.
    Pictures given as bytes go through ``keep``; without it they are refused. ``empty`` counts
    the captions that were left out for being empty. Without ``masks`` no mask is refused. With
    ``texts`` a record of two captions or more needs no picture.
    """
    identity = values.get("id")
    if isinstance(identity, str | int) and not isinstance(identity, bool):
        row.sample_id = check_name("id", str(identity)) or row.sample_id
    elif identity is not None:
        raise ValueError(f"id: {shown(identity)}, allowed: a text or an integer")
    concept = values.get("concept")
    if concept is not None and not isinstance(concept, str):
        raise ValueError(f"concept: {shown(concept)}, allowed: a text")
    row.concept = check_name("concept", concept) if concept else None
    image = values.get("image")
    if _absent(image):
        _check_texts(values, texts, bool(values.get("mask")) and masks)
    else:
        row.image = _picture("image", image, locate, keep)
    if isinstance(image, str) and image:
        path = image.replace("\\", "/")
        row.sample_id = row.sample_id or check_name("id", posixpath.splitext(path)[0])
    references = values.get("references") or []
    if not isinstance(references, list):
        raise ValueError(f"references: {shown(references)}, allowed: a list of paths")
    row.references = [_picture("references", reference, locate, keep) for reference in references]
    row.mask = _mask(values.get("mask"), locate, keep, masks)
    captions = captions_in(values)
    row.captions = {key: text for key, text in captions.items() if text}
    if not row.captions:
        raise ValueError("empty caption" if captions else "missing caption")
    check_captions(row.captions)
    if empty is not None:
        empty.update(key for key, text in captions.items() if not text)


def _absent(image: Any) -> bool:
    if isinstance(image, dict) and image.keys() & {"bytes", "path"}:  # as Hugging Face writes them
        return image.get("bytes") is None and image.get("path") in (None, "")
    return image is None or image == ""


def _check_texts(values: Mapping[str, Any], allowed: bool, masked: bool) -> None:
    """Raises ValueError for a record without a picture, unless that is ``allowed`` and it holds two
    captions, one for each role."""
    count = sum(map(bool, captions_in(values).values()))
    problem = "missing image: no field 'image'"
    if not allowed:
        if count > 1:
            problem += " (data.drawn_size takes texts alone, for context.name: enhanced_prompt)"
        raise ValueError(problem)
    if count < 2:
        raise ValueError(f"{problem} and {count} captions, allowed without a picture: 2 or more")
    if masked:
        raise ValueError("bad mask: there is no picture of it")


def _mask(
    value: Any, locate: Callable[[str], str], keep: Keep | None, heeded: bool
) -> ByteRange | None:
    if value in (None, ""):
        return None
    try:
        return _picture("mask", value, locate, keep)
    except ValueError as error:
        if heeded:
            raise ValueError(f"bad mask: {str(error).removeprefix('mask: ')}") from None
        return None


def _picture(name: str, value: Any, locate: Callable[[str], str], keep: Keep | None) -> ByteRange:
    given = value
    if keep is not None and isinstance(value, dict):  # as Hugging Face writes pictures
        given = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if given is None or given == "":
        raise ValueError(f"missing image: no field {name!r}")
    if keep is not None and isinstance(given, bytes):
        return keep(given)
    if not isinstance(given, str):
        kinds = "a path" if keep is None else "bytes, a path, or {bytes, path}"
        raise ValueError(f"{name}: {shown(value)}, allowed: {kinds}")
    if "\0" in given or not _is_unicode(given) or len(given) > MAX_NAME:
        raise ValueError(f"{name}: {shown(given)}, allowed: a path")
    if holds_credentials(given):
        raise ValueError(
            f"{name}: credentials in a path, allowed: a path without; those of s3:// come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return ByteRange(locate(given))


def captions_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Captions of a record by key, each on one line; a null is as good as absent. Raises ValueError
    for one that is no text."""
    texts: dict[str, Any] = {}
    for name in CAPTION_FIELDS:
        value = values.get(name)
        if isinstance(value, dict) and name == "captions":
            texts.update(value)
        elif value is not None:
            texts[CAPTION_KEY] = value
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"caption {key!r}: {shown(text)}, allowed: a text")
    return {key: one_line(text) for key, text in texts.items() if text is not None}


def one_line(text: str) -> str:
    """A caption as it trains: encoders would read ends of lines, tabs and marks of byte order as
    signs of the text."""
    return _BREAKS.sub(" ", text.replace("\ufeff", "").strip())


def check_captions(captions: Mapping[str, str]) -> None:
    """Raises ValueError with the reason when one of them cannot be trained on."""
    if len(captions) > MAX_CAPTIONS:
        raise ValueError(f"too many captions: {len(captions)}, allowed: {MAX_CAPTIONS}")
    for key, text in captions.items():
        check_name("caption key", key)
        if len(text) > MAX_CAPTION:
            raise ValueError(f"caption too long: {len(text)} characters, allowed: {MAX_CAPTION}")
        if not _is_unicode(text):
            raise ValueError("caption is not Unicode: it holds half of a surrogate pair")
        if control := _control(text):
            raise ValueError(f"caption holds {control}, a control character")
        if token := _CONTROL_TOKEN.search(text):
            raise ValueError(f"caption holds {token[0]}, a control token of chat templates")


def check_name(what: str, text: str) -> str:
    """``text`` itself; raises ValueError when it is too long or nothing that can be printed."""
    if len(text) > MAX_NAME:
        raise ValueError(f"{what} too long: {len(text)} characters, allowed: {MAX_NAME}")
    if not _is_unicode(text):
        raise ValueError(f"{what} is not Unicode: {shown(text)}")
    if control := _control(text, allowed=""):
        raise ValueError(f"{what} holds {control}, a control character")
    if holds_credentials(text):  # names are written into manifest, ledger and run page
        raise ValueError(f"{what} holds credentials, allowed: a name without")
    return text


def _control(text: str, allowed: str = "\t\n\r") -> str | None:
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in allowed:
            return f"U+{ord(character):04X}"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value of any kind and size in a few characters that can always be written."""
    known = isinstance(value, str | int | float | bool | list | dict)
    text = line(repr(value), 200) if known else ""
    return text if text and len(text) <= 60 else type(value).__name__


def printable(text: str) -> str:
    """A file name in characters that can always be written."""
    return text.encode("utf-8", "backslashreplace").decode()
