"""Credentials in texts: told apart, and taken out of what is written, shown or sent to others.

Two kinds: what looks like one (in URLs, headers, assignments, by the prefixes that services give
their keys), and the values of environment variables whose names say so. Every pattern is bounded,
so that no text takes long, and stops at quotes and takes escapes whole, so that JSON stays JSON.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

_HIDDEN = "***"


def _or_quoted(character: str) -> str:
    """A pattern of the character as it is or percent-encoded, once or more often."""
    return rf"(?:{re.escape(character)}|%(?:25){{0,3}}{ord(character):02X})"


_COLON, _SLASH, _AT = (_or_quoted(character) for character in ":/@")
_EQUALS, _AND, _ASKED, _HASH = (_or_quoted(character) for character in "=&?#")
_SCHEME = rf"\b[a-z][a-z0-9+.-]{{0,20}}{_COLON}(?:\\{{0,4}}{_SLASH}){{2}}"
_END = r"\s'\"<>"
_ESCAPE = r"\\."
# A password may hold "/" or "@", though it should be quoted: after user and ":" take up to an "@".
# Before the first slash stands only user info; the account of an S3 access point is none.
_USER_INFO = (
    rf"({_SCHEME})(?!arn:)"
    rf"(?:(?:(?!{_SLASH})(?:{_ESCAPE}|[^{_END}\\])){{1,2048}}{_AT}"
    rf"|(?:(?!{_SLASH}|{_AT}|{_COLON})[^{_END}]){{0,512}}{_COLON}"
    rf"(?:{_ESCAPE}|[^{_END}@\\]){{0,2048}}{_AT})"
)
_NAMES = (
    r"token|secret|passw(?:or)?d|passwd|pwd|signature|credential|api[-_]?key|access[-_]?key"
    r"|account[-_]?key|private[-_]?key"
)
_WORD = r"[a-z0-9_.\[\]-]"
_PARAMETER = (
    rf"((?:{_ASKED}|{_AND}|{_HASH}|;){_WORD}{{0,64}}?"
    rf"(?:{_NAMES}|key|auth|session|sig(?![a-z])){_WORD}{{0,64}}{_EQUALS})"
    rf"(?:{_ESCAPE}|(?!{_AND})[^{_END}\\]){{1,4096}}"
)
_ASSIGNED = (
    rf"((?<![a-z0-9]){_WORD}{{0,64}}?(?:{_NAMES})\\?[\"']?\s{{0,4}}=\s{{0,4}}\\?[\"']?)"
    rf"(?:{_ESCAPE}|[^{_END}\\&]){{1,4096}}"
)
_IN_JSON = (
    rf"(\\?[\"']{_WORD}{{0,64}}?(?:secret|passw(?:or)?d|passwd|api[-_]?key|access[-_]?key)\\?[\"']"
    r"\s{0,4}:\s{0,4}\\?[\"'])(?:\\[^\"']|[^\"'\\]){1,4096}"
)
"""Without ``token``, which is the name of nothing secret in records of our own."""
_HEADER = (
    r"(\b(?:proxy-)?authorization\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?)"
    r"(?:\\[^\"n]|[^\r\n\"'<>\\]){1,4096}"
)
_BEARER = r"(\bbearer\s{1,4})[a-z0-9._~+/=-]{16,4096}"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), rf"\1{instead}")
    for pattern, instead in (
        (_HEADER, _HIDDEN),
        (_BEARER, _HIDDEN),
        (_USER_INFO, f"{_HIDDEN}@"),
        (_PARAMETER, _HIDDEN),
        (_ASSIGNED, _HIDDEN),
        (_IN_JSON, _HIDDEN),
    )
)
_KEYS = re.compile(
    r"\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,128}\b"
    r"|(?<![A-Za-z0-9])hf_(?=[a-z]{0,128}[A-Z0-9])[A-Za-z0-9]{8,128}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,255}|\bgithub_pat_[A-Za-z0-9_]{16,255}"
    r"|\bglpat-[A-Za-z0-9_-]{16,255}|\bxox[abprs]-[A-Za-z0-9-]{10,255}"
    r"|\bsk-(?=[a-z_-]{0,64}[A-Z0-9])[A-Za-z0-9_-]{20,255}"
    r"|\bAIza[A-Za-z0-9_-]{30,64}"
    r"|\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{0,4096}"
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[^-]{0,16384}(?:-----END [A-Z ]{0,32}KEY-----)?"
)
_CLUES = re.compile(
    r":\\{0,4}/|%(?:25){0,3}3a|=|%(?:25){0,3}3d|authorization|bearer|secret|passw|api|access",
    re.IGNORECASE,
)
"""Without one of these no pattern can match: most texts have none."""

_SECRET_NAME = re.compile(
    r"(?:(?:^|_)(?:SECRET|TOKEN|PASSWD|PASSPHRASE|CREDENTIALS?|ACCESS_KEY|PRIVATE_KEY|ACCOUNT_KEY)"
    r"|API_?KEY|PASSWORD)(?:$|_(?!FILE|PATH|DIR|ID$|URL|URI|NAME|TYPE|MODE|EXP))"
)
_SHORTEST = 8
"""Characters of an environment's secret; one of small letters alone, which may be a word, has more:
what is shorter could not be told from the texts around it."""
_SHORTEST_WORD = 12


def redact(text: str) -> str:
    """``text`` without the credentials in it: user info and secret parameters of URLs, headers,
    assigned secrets, keys of known form, and the secrets of this process's environment."""
    secrets = _environment_secrets(os.environ)
    if secrets:
        text = _pattern_of(secrets).sub(_HIDDEN, text)
    if _CLUES.search(text):
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
    return _KEYS.sub(_HIDDEN, text)


def holds_credentials(text: str) -> bool:
    """True when :func:`redact` would take something away, and for whatever stands in the place of
    an S3 bucket's name as ``key:secret@``."""
    if text.startswith("s3://"):
        bucket = text.removeprefix("s3://").split("/", 1)[0]
        if re.search("[:@]", bucket) is not None and not bucket.startswith("arn:"):
            return True
    return redact(text) != text


def _environment_secrets(environment: Mapping[str, str]) -> frozenset[str]:
    values = [environment[name] for name in environment if _is_secret(name)]
    return frozenset(value for value in values if _can_be_told(value))


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name.upper()) is not None


@lru_cache(maxsize=256)
def _can_be_told(value: str) -> bool:
    shortest = _SHORTEST_WORD if value.isalpha() and value.islower() else _SHORTEST
    return len(value) >= shortest and not value.startswith(("/", "~"))  # a file that holds it


@lru_cache(maxsize=8)
def _pattern_of(secrets: frozenset[str]) -> re.Pattern[str]:
    """Every secret as a word of its own, as it is or as JSON, HTML and URLs write it."""
    forms = {
        form
        for secret in secrets
        for form in (
            secret,
            json.dumps(secret)[1:-1],
            html.escape(secret),
            quote(secret),
            quote(secret, safe=""),
        )
    }
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile(
        rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, longest_first))})(?![A-Za-z0-9])"
    )
