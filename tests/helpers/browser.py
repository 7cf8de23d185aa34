"""A real browser for the run page: Debian's chromium, headless."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def open_page(path: Path | str, *flags: str) -> tuple[str, list[str]]:
    """(DOM after the page's scripts ran, console lines) of a file or a URL. Skips the test without
    a browser."""
    browser = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--enable-logging=stderr",
                "--virtual-time-budget=2000",
                f"--user-data-dir={profile}",
                *flags,
                "--dump-dom",
                path if isinstance(path, str) else path.absolute().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def ask_page(text: str, width: int, script: str) -> tuple[Any, list[str]]:
    """(what ``script`` returns, console lines) of a page that is ``width`` pixels wide.

    A browser's own window is never as narrow as a phone, so the page stands in a frame. The script
    is JavaScript outside of the page; it knows the page's ``page`` (document) and ``view``.
    """
    frame = f'<iframe style="width:{width}px;height:800px" srcdoc="{html.escape(text)}"></iframe>'
    ask = (
        "onload = async () => { const view = document.querySelector('iframe').contentWindow;"
        f"const page = view.document; const ask = async () => {{ {script} }};"
        "const found = await ask().catch((error) => ({error: String(error)}));"
        "document.querySelector('pre').textContent = JSON.stringify(found); };"
    )
    with tempfile.TemporaryDirectory() as folder:
        host = Path(folder) / "host.html"
        host.write_text(f"<!doctype html>{frame}<pre></pre><script>{ask}</script>")
        dom, console = open_page(host, "--window-size=1400,900")
    answer = html.unescape(dom.rpartition("<pre>")[2].partition("</pre>")[0])
    return json.loads(answer), console
