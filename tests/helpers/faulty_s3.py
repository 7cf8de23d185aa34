"""A proxy before an S3 server that fails on demand."""

from __future__ import annotations

import http.client
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CODES = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
}
"""Fault -> (status, code, message) as S3 sends them."""


@dataclass
class Fault:
    """What happens to the next ``times`` requests of ``method`` whose path matches.

    ``kind``: one of CODES, ``drop`` (closed without a word), ``cut`` (closed in the middle of the
    body), ``slow`` (the body a byte at a time), ``hang`` (nothing until the client gives up).
    """

    kind: str
    path: str = ""
    method: str = "GET|PUT|POST|HEAD"
    times: int = 1
    pause: float = 0.002
    hits: int = 0

    def takes(self, method: str, path: str) -> bool:
        return (
            self.hits < self.times
            and re.fullmatch(self.method, method) is not None
            and re.search(self.path, path) is not None
        )


@dataclass
class Faults:
    """The faults in force, in order, and what was asked for."""

    active: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, path: str = "", **options: Any) -> Fault:
        fault = Fault(kind, path, **options)
        with self.lock:
            self.active.append(fault)
        return fault

    def clear(self) -> None:
        with self.lock:
            self.active.clear()
            self.requests.clear()

    def meet(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.active:
                if fault.takes(method, path):
                    fault.hits += 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The body is written after the headers, and the kernel would keep it for 40 ms.
    disable_nagle_algorithm = True
    server: FaultyS3

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.faults.meet(self.command, self.path)
        kind = fault.kind if fault else ""
        if kind in CODES:
            self._refuse(*CODES[kind])
            return
        if kind in ("drop", "hang"):
            if kind == "hang":
                self.server.over.wait(30)
            self.close_connection = True
            return
        answer, data = self._ask(body)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if kind == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault and kind == "slow":
            for at in range(len(data)):
                self.wfile.write(data[at : at + 1])
                time.sleep(fault.pause)
        else:
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.server.behind, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


class FaultyS3(ThreadingHTTPServer):
    """Listens on ``port`` of this machine and passes on to the server ``behind``."""

    daemon_threads = True

    def __init__(self, port: int, behind: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behind, self.faults, self.over = behind, Faults(), threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are what the tests are about."""

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
