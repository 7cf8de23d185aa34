"""URLs that would carry a secret into configs, logs and pages."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]*[^/\s:]+:[^\s@]*@", re.IGNORECASE)


def holds_credentials(text: str) -> bool:
    """True for ``scheme://user:password@...`` and for whatever stands in a bucket's place so."""
    if text.startswith("s3://"):
        bucket = text.removeprefix("s3://").split("/", 1)[0]
        return re.search("[:@]", bucket) is not None and not bucket.startswith("arn:")
    return _USER_INFO.match(text) is not None
