"""Texts that are not UTF-8: read where their encoding is named, otherwise refused with a guess."""

from __future__ import annotations

import codecs
import re
import unicodedata

from dopsd.shown import value

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KEY = "data.caption_encoding"


def decoded(data: bytes, encoding: str) -> str:
    """The text of a file: UTF-8 wherever it is that, with or without a mark, else ``encoding``.

    Other texts are hardly ever valid UTF-8 by chance, so that a folder may hold both. Raises
    ValueError that names the likely encoding and the key that reads it.
    """
    other = codecs.lookup(encoding).name
    wide = other.startswith(("utf-16", "utf-32"))
    try:
        if not (wide and b"\0" in data):
            text = data.decode("utf-8-sig")
            if 3 * data.count(0) <= len(data):
                return text
            raise ValueError(f"not UTF-8 (full of zeros){_advice(data)}")
    except UnicodeDecodeError as error:
        if other == "utf-8":
            place = f"{error.reason} at byte {error.start}"
            raise ValueError(f"not UTF-8 ({place}){_advice(data)}") from None
    try:
        return data.decode(other).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"neither UTF-8 nor {encoding} ({error.reason} at byte {error.start}){_advice(data)}"
        ) from None


def _advice(data: bytes) -> str:
    likely = likely_encoding(data)
    if likely is None:
        return ""
    shown = value(" ".join(data.decode(likely, "ignore").split())[:40])
    return f"; likely {_NAMES.get(likely, likely)}, which reads {shown}: {_KEY}={likely}"


_NAMES = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 (little endian)",
    "utf-16-be": "UTF-16 (big endian)",
    "utf-32": "UTF-32",
    "cp1252": "Windows-1252",
    "cp1251": "Windows-1251 (Cyrillic)",
    "cp932": "Shift-JIS (Japanese)",
    "cp949": "CP949 (Korean)",
    "gb18030": "GB18030 (Chinese)",
    "latin-1": "ISO 8859-1",
}


def likely_encoding(data: bytes) -> str | None:
    """A guess at the encoding of a text that is not UTF-8; None where nothing fits.

    What a library guesses of the few words of a caption is no better: of Windows-1252, by far the
    most frequent, charset-normalizer makes Windows-1250.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if b"\0" in data:
        even, odd = data[::2].count(0), data[1::2].count(0)
        wide = "utf-16-le" if odd > even else "utf-16-be"
        return wide if _reads(data, wide) else None
    letters = [byte for byte in data if chr(byte).isalpha() or byte >= 0x80]
    if sum(byte >= 0x80 for byte in letters) > 0.4 * len(letters):
        for name, looks_right in (
            ("cp932", _japanese),
            ("cp1251", _cyrillic),
            ("cp949", _korean),
            ("gb18030", _chinese),
        ):
            text = _reads(data, name)
            if text is not None and looks_right(text):
                return name
    return next((name for name in ("cp1252", "latin-1") if _reads(data, name)), None)


def _reads(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _japanese(text: str) -> bool:
    return len(re.findall("[\u3041-\u30ff]", text)) > 0.2 * _foreign(text)


def _cyrillic(text: str) -> bool:
    """Words of small letters: bytes of Chinese, read so, mix capitals into them."""
    small = len(re.findall("[а-яё]", text))
    return small > 2 and small > 0.8 * _foreign(text)


def _korean(text: str) -> bool:
    return len(re.findall("[가-힣]", text)) > 0.8 * _foreign(text)


def _chinese(text: str) -> bool:
    return len(re.findall("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", text)) > 0.8 * _foreign(text)


def _foreign(text: str) -> int:
    return sum(ord(sign) >= 0x80 and unicodedata.category(sign) != "Zs" for sign in text)
