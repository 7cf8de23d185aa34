"""What the hub refuses is one line with the model's name, its key and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dopsd.errors import ModelError
from dopsd.models import ZImage

SECRET = "hf_" + "a1B2c3D4" * 4


def refusal(kind: type[HfHubHTTPError], status: int, words: str = "refused") -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None, url="https://hub")
    return kind(f"{words}\nfor the token {SECRET}", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal(GatedRepoError, 403), "is gated; accept its licence at https://.*HF_TOKEN"),
        (refusal(RepositoryNotFoundError, 404), "is no repository of the hub, or a private one"),
        (refusal(RevisionNotFoundError, 404), "has no revision 'old'"),
        (refusal(EntryNotFoundError, 404, "no model_index.json"), "no model_index.json"),
        (refusal(HfHubHTTPError, 500, "Server Error"), r"cannot be had.*Server Error.*doctor"),
        (LocalEntryNotFoundError("not found"), "is not in the cache, and the hub does not answer"),
        (ConnectionError("no route"), r"cannot be had from the hub \(no route\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_refusal(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=f"^model.base: owner/name:? ?.*{words}") as caught:
        ZImage("owner/name", "old")
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
