"""A torchvision that was built for another torch: it breaks every image processor of transformers,
which says of it only that it could not import them."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec


def torchvision_problem() -> str | None:
    """What is wrong with the torchvision that is installed, in words; None where it works or there
    is none, which is fine: transformers then has image processors of its own."""
    if find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        return f"{_version('torchvision')} does not fit torch {_version('torch')}: {said}"
    return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"
