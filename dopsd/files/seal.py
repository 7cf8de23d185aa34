"""Records that carry the digest of their own content: what is read back is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dopsd.credentials import redact

SEAL = "sha256"
"""The key of the digest, which covers all others."""


def sealed(values: Mapping[str, Any]) -> bytes:
    """JSON-able ``values`` and their digest as a file. Credentials are taken out first, or the
    file would not be what was digested."""
    plain = json.loads(redact(json.dumps(values, ensure_ascii=False)))
    text = json.dumps({**plain, SEAL: _digest(plain)}, indent=1, ensure_ascii=False)
    return (text + "\n").encode()


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of :func:`sealed`, of the file as JSON. Raises ValueError when they were changed
    since, or have no digest."""
    if SEAL not in values:
        raise ValueError(f"of an older dopsd: it has no {SEAL} of its content")
    rest = {key: value for key, value in values.items() if key != SEAL}
    if values[SEAL] != _digest(rest):
        raise ValueError(f"damaged or changed by hand, its {SEAL} is not that of its content")
    return rest


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
