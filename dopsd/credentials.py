"""Credentials in URLs: told apart, and taken out of what is shown or sent to others."""

from __future__ import annotations

import re

# A password may hold "/" or "@", though it should be quoted: after user and ":" take up to an "@".
_USER_INFO = re.compile(
    r"(\b[a-z][a-z0-9+.-]*://)(?:[^/\s'\"]+|[^/\s@'\":]*:[^\s@'\"]*)@", re.IGNORECASE
)
_PARAMETER = re.compile(
    r"([?&][^=&\s'\"]*(?:token|key|secret|password|signature|credential)[^=&\s'\"]*=)[^&\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` without the user info and the secret parameters of URLs in it."""
    return _PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


_WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]*[^/\s:]+:[^\s@]*@", re.IGNORECASE)


def holds_credentials(text: str) -> bool:
    """True for ``scheme://user:password@...`` and for whatever stands in a bucket's place so."""
    if text.startswith("s3://"):
        bucket = text.removeprefix("s3://").split("/", 1)[0]
        return re.search("[:@]", bucket) is not None and not bucket.startswith("arn:")
    return _WITH_PASSWORD.match(text) is not None
