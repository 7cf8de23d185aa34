"""The templates of the run page, ``assets/*.html.j2``: what is put into one is escaped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dopsd import shown
from dopsd.credentials import redact
from dopsd.report.pictures import inline

_ASSETS = Path(__file__).parent / "assets"


def fill(template: str, **values: Any) -> Markup:
    """The HTML of ``assets/TEMPLATE.html.j2`` with ``values``, of which none may be missing."""
    return Markup(_environment().get_template(f"{template}.html.j2").render(values))


def nothing(why: str) -> Markup:
    """In place of a section that has no content."""
    return Markup('<p class="nothing">{}</p>').format(_shown(why))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        finalize=_shown,
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quote": _link, "bytes": _bytes}
    environment.globals["inline"] = inline
    environment.globals["asset"] = lambda name: Markup((_ASSETS / name).read_text("utf-8"))
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _shown(value: Any) -> Any:
    """Whatever text is put into a page, as it may be seen; HTML is made of such texts already."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return shown.visible(redact(value))
    return value


def _link(name: str) -> str:
    """The file of that name in the page's own folder, whatever scheme the name looks like."""
    return f"./{quote(name, errors='surrogateescape')}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
