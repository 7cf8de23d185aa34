"""What the hub refuses, in one line that names the model and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dopsd import shown
from dopsd.errors import ModelError, message_line


def licence_remedy(model: str) -> str:
    """Of a gated repository."""
    return (
        f"accept its licence at https://huggingface.co/{model}, and set HF_TOKEN in every node's "
        "environment"
    )


@contextmanager
def hub_errors(key: str, model: str, revision: str | None = None) -> Iterator[None]:
    """Whatever the hub says of ``model``, which ``key`` names in the config, becomes one
    ModelError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelError(f"{key}: {model} is gated; {licence_remedy(model)}") from None
    except RevisionNotFoundError:
        raise ModelError(f"{key}: {model} has no revision {shown.value(revision)}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{key}: {model} is no repository of the hub, or a private one; allowed: owner/name, "
            "for private ones with HF_TOKEN in every node's environment"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{key}: {model} is not in the cache, and the hub does not answer; allowed: a network "
            "(HF_ENDPOINT, HF_HUB_OFFLINE unset), or a local folder (`dopsd doctor` looks)"
        ) from None
    except EntryNotFoundError as error:
        raise ModelError(f"{key}: {model}: {_reason(error)}") from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{key}: {model} cannot be had from the hub ({_reason(error)}); `dopsd doctor` looks"
        ) from None


def _reason(error: Exception) -> str:
    return shown.line(message_line(error), 300)
