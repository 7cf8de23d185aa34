"""Records with a digest of their own content."""

from __future__ import annotations

import json

import pytest

from dopsd.credentials import redact
from dopsd.files.seal import SEAL, sealed, unsealed

VALUES = {"step": 3, "name": "é", "nested": {"b": [1.5, None], "a": True}}


def test_what_was_sealed_is_read_back() -> None:
    assert unsealed(json.loads(sealed(VALUES))) == VALUES


def test_a_secret_is_out_before_the_digest_is_made() -> None:
    text = sealed({"source": "https://me:SECRET@host/a.png"}).decode()
    assert "SECRET" not in text and redact(text) == text
    unsealed(json.loads(text))


@pytest.mark.parametrize("change", [{"step": 4}, {"more": 1}, {"nested": {}}, {SEAL: None}])
def test_a_change_is_found(change: dict) -> None:
    with pytest.raises(ValueError, match="damaged or changed by hand"):
        unsealed(json.loads(sealed(VALUES)) | change)


def test_a_record_of_an_older_dopsd_is_told() -> None:
    with pytest.raises(ValueError, match="of an older dopsd: it has no sha256"):
        unsealed(VALUES)
