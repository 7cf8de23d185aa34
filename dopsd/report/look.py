"""The page of ``dopsd data look``: contact sheet, buckets as bars, and all that is told."""

from __future__ import annotations

from markupsafe import Markup

from dopsd.data.look import Look
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.ownership import RECORD
from dopsd.report.templates import fill, nothing

_QUARANTINED = 50
"""Samples that cannot be used, listed on the page."""
_MARK = b'<meta name="generator" content="dopsd">'


def check_page(path: str, option: str = "--page") -> None:
    """Raises ConfigError when something that dopsd did not make has the page's place, which
    ``option`` names, or the page of a run or a library, whose record knows it."""
    storage.check_file(option, path)
    folder = path.rpartition("/")[0]
    record = storage.join(folder or ".", RECORD)
    if storage.exists(path) and storage.exists(record):
        raise ConfigError(
            f"{option}: {path} is the page of what lies in {folder or '.'}; allowed: another path"
        )
    if storage.taken(path) and not (
        storage.exists(path) and _MARK in storage.read_bytes(path, 0, 4096)
    ):
        raise ConfigError(f"{option}: {path} is no page of dopsd's; allowed: another path")


def write_look(path: str, look: Look) -> None:
    """Write the page to ``path``, which was checked."""
    storage.write_bytes(path, render(look).encode())


def render(look: Look) -> str:
    """The whole page."""
    sections: list[tuple[str, Markup]] = [
        ("Data", fill("look", look=look, listed=_QUARANTINED)),
        ("Pictures", fill("contact_sheet", pictures=look.pictures))
        if look.pictures
        else ("Pictures", nothing("No sample has one." if look.rows else "None can be used.")),
    ]
    return fill("page", sections=sections, run_name="Data", folder=look.source)
