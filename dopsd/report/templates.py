"""The templates of the run page, ``assets/*.html.j2``: what is put into one is escaped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dopsd.credentials import redact
from dopsd.report.pictures import inline

_ASSETS = Path(__file__).parent / "assets"


def fill(template: str, **values: Any) -> Markup:
    """The HTML of ``assets/TEMPLATE.html.j2`` with ``values``, of which none may be missing."""
    return Markup(_environment().get_template(f"{template}.html.j2").render(values))


def nothing(why: str) -> Markup:
    """In place of a section that has no content."""
    return Markup('<p class="nothing">{}</p>').format(why)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"redact": redact, "quote": quote, "bytes": _bytes}
    environment.globals["inline"] = inline
    environment.globals["asset"] = lambda name: Markup((_ASSETS / name).read_text("utf-8"))
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
