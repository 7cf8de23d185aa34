"""Taking credentials out of what is shown or sent to others."""

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
