"""`dopsd report RUN --serve`: the run page on this machine alone, as it stands now.

Nothing is served but that page, what says whether it has changed, and the pictures that it names.
The URL holds a token; who does not know it is refused, and so is a page of somebody else's that
gave this address a name of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from dopsd import shown, signals
from dopsd.errors import ConfigError, DopsdError, message_line
from dopsd.files import storage
from dopsd.readers import Object, read_json
from dopsd.report.page import named_pictures, render
from dopsd.report.run_files import read_run_files
from dopsd.run_folder.files import REPORT_FILE, SUMMARY_FILE, RunFolder
from dopsd.terminal import say

HOST = "127.0.0.1"
_OWN_NAMES = ("127.0.0.1", "localhost")
"""What a browser of this machine calls it; behind a tunnel, too, with whatever port."""
_SECONDS, _SECONDS_REMOTE = 3.0, 10.0
"""Between two looks at a folder, however many ask."""
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """The page of a run folder, rendered anew when something in it has changed."""

    def __init__(self, folder: str, seconds: float | None = None) -> None:
        self.folder = folder
        remote = storage.is_remote(folder)
        self.seconds = seconds or (_SECONDS_REMOTE if remote else _SECONDS)
        self._lock = threading.Lock()
        self._looked = -float("inf")
        self._stamp = self._rendered = ""
        self._page, self._finished = b"", False
        self._pictures: set[str] = set()

    def stamp(self) -> dict[str, Any]:
        """What changes with the folder, for the page's script."""
        with self._lock:
            self._look()
            return {"stamp": self._stamp, "finished": self._finished, "seconds": self.seconds}

    def page(self) -> bytes:
        """Raises whatever reading the folder does."""
        with self._lock:
            self._look()
            if self._rendered != self._stamp:
                run = dataclasses.replace(read_run_files(self.folder), live=True)
                self._page, self._pictures = render(run).encode(), named_pictures(run)
                self._rendered = self._stamp
            return self._page

    def picture(self, name: str) -> bytes | None:
        """A picture that the page names; None for whatever else."""
        self.page()
        if name not in self._pictures or not RunFolder(self.folder).has(name):
            return None
        payload = RunFolder(self.folder).read(name)
        return payload if payload.startswith(_PNG) else None

    def _look(self) -> None:
        if time.monotonic() - self._looked < self.seconds:
            return
        files = [entry for entry in storage.list_files(self.folder) if entry[0] != REPORT_FILE]
        self._stamp = hashlib.sha256(repr(files).encode()).hexdigest()
        self._finished = self._is_finished()
        self._looked = time.monotonic()

    def _is_finished(self) -> bool:
        """The summary comes before the drawings, and names the page once that is written, last."""
        run = RunFolder(self.folder)
        if not (run.is_finished and run.has(REPORT_FILE)):
            return False
        return read_json(run.file(SUMMARY_FILE), Object).get("page") is not None


class LiveServer(ThreadingHTTPServer):
    """Serves ``page`` under ``url``. Raises ConfigError for a port that is taken."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page, self.token = page, secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port: {port}: {message_line(error)}; allowed: a free one"
            ) from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nobody's business."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = 30  # seconds that a client may be silent
    server_version, sys_version = "dopsd", ""

    def do_GET(self) -> None:
        try:
            status, kind, payload = self._answer()
        except (DopsdError, OSError) as error:  # e.g. S3 away for a moment
            status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8"
            payload = shown.line(message_line(error)).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(payload)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str, bytes]:
        page, name = self.server.page, self._name()
        if name is None:
            return HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", b"403: not this address"
        if name == "":
            return HTTPStatus.OK, "text/html; charset=utf-8", page.page()
        if name == "stamp":
            try:
                stamp = page.stamp()
            except (DopsdError, OSError) as error:
                stamp = {"problem": shown.line(message_line(error)), "seconds": page.seconds}
            return HTTPStatus.OK, "application/json", json.dumps(stamp).encode()
        if (picture := page.picture(name)) is not None:
            return HTTPStatus.OK, "image/png", picture
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"404: nothing of this page"

    def _name(self) -> str | None:
        """What is asked for, as it stands behind the token; None without the right one."""
        _, _, rest = urlsplit(self.path).path.partition("/")
        token, slash, name = rest.partition("/")
        right = secrets.compare_digest(token.encode(), self.server.token.encode())
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return name if right and slash and host in _OWN_NAMES else None

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the path holds the token."""


def serve(folder: str, port: int = 0) -> None:
    """Serve a run's page until Ctrl-C. Raises DataError for no run, ConfigError for a port that is
    taken; whatever else ends it is raised as it is."""
    page = LivePage(folder)
    page.page()
    with LiveServer(page, port) as server:
        try:
            say(f"The run page, until Ctrl-C: {server.url}")
            server.serve_forever()
        except KeyboardInterrupt:
            if signals.asked_to_end() not in (None, "SIGINT"):
                raise
    say("The page is served no more.")
