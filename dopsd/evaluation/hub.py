"""Weights from a local folder or the hub, and one clear reason when they are not at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dopsd.errors import ModelError


class MissingWeights(ModelError):
    """A model's weights or libraries are not at hand; the message says which and why."""


@contextmanager
def telling_missing(who: str, model: str | None) -> Iterator[None]:
    """Turn a library's failure to find or read weights into one MissingWeights line."""
    try:
        yield
    except MissingWeights:
        raise
    except (OSError, ImportError, ValueError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise MissingWeights(
            f"{who}: {model} is not at hand ({type(error).__name__}: {reason.strip()})"
        ) from None


def check_config(who: str, model: str) -> None:
    """Raise MissingWeights unless the folder or hub id has a ``config.json`` that can be read."""
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise MissingWeights(f"{who}: {model} has no config.json")
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise MissingWeights(f"{who}: {model} is no folder and no hub id (owner/name)")
    from huggingface_hub import hf_hub_download

    with telling_missing(who, model):
        hf_hub_download(model, "config.json")
