"""What goes wrong with the hub, as one line: key, repository, status, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import isdir

from dopsd.errors import DopsdError, ModelError, message_line

_TOKEN = "HF_TOKEN (in a cluster: of the Secret dopsd-credentials)"
_AGAIN = "the same command, which goes on where it stopped"


def licence_remedy(repository: str) -> str:
    """Of a gated repository."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repository}"
    return f"accept its licence at {page}, and give that account's token as {_TOKEN}"


def is_hub_id(model: str) -> bool:
    """Whether a model's name can be ``owner/name`` of the hub, and is no folder here."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not isdir(model)


@contextmanager
def hub_errors(
    key: str, repository: str, revision: str | None = None, may: str = "read"
) -> Iterator[None]:
    """Turn what the hub answers, or does not, into a ModelError in the name of ``key``; whatever
    else goes wrong stays what it is. ``may``: what a token has to allow."""
    try:
        yield
    except DopsdError:
        raise
    except Exception as error:  # the library raises kinds without a common base
        if problem := hub_problem(error, repository, revision, may):
            raise ModelError(f"{key}: {problem}") from None
        raise


def hub_problem(
    error: BaseException, repository: str, revision: str | None = None, may: str = "read"
) -> str | None:
    """What ``error``, or what it came from, says of the hub's ``repository``; None when it is none
    of the hub's."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, HTTPError) and getattr(each, "response", None) is not None:
            return _refused(each, repository, revision, may)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return _not_here(repository)
    for each in chain:
        if isinstance(each, HTTPError):
            what = f"{type(each).__name__}: {message_line(each)}"
            return f"{repository}: the hub is not reached ({what}); allowed: {_AGAIN}"
    if any(isinstance(each, errors.LocalEntryNotFoundError) for each in chain):
        return _not_here(repository)
    return None


def _not_here(repository: str) -> str:
    return (
        f"{repository}: not in HF_HOME, and the hub is not asked (HF_HUB_OFFLINE); allowed: "
        "`dopsd fetch CONFIG --to HF_HOME` where there is a network"
    )


def _refused(error: BaseException, repository: str, revision: str | None, may: str) -> str:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository}: {status}, gated; allowed: {licence_remedy(repository)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository}: {status}, no revision {revision!r}; allowed: one of {page}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repository}: {status}, it lacks a file that is read; allowed: a whole model"
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository}: {status}, no such repository, or a private one; allowed: its right "
            f"name, or a token that may {may} it as {_TOKEN}"
        )
    if status in (401, 403):
        return (
            f"{repository}: {status}, not allowed; allowed: a token that may {may} it as {_TOKEN}"
        )
    if status == 429:
        return (
            f"{repository}: 429, rate limited; allowed: waiting some minutes, or {_TOKEN}, which "
            "is granted more"
        )
    return f"{repository}: {status}, the hub fails; allowed: {_AGAIN}, some minutes later"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
