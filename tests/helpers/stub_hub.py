"""A hub of models on this machine that answers as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
LARGE = ".safetensors"
"""Files of this kind are stored by SHA-256, as the hub stores large ones."""


class StubHub:
    """``files``: repository -> name -> bytes. ``answer``: (status, error code of the hub) in place
    of everything. ``cut``: a file's name that is sent by halves. ``changed``: one whose bytes are
    not those of its digest."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files = files
        self.answer: tuple[int, str] | None = None
        self.cut = self.changed = ""
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.respond(self)

            def do_HEAD(self) -> None:
                hub.respond(self)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StubHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].strip("/")
        self.asked.append((request.command, path))
        if self.answer is not None:
            status, code = self.answer
            self._send(request, status, b"{}", {"X-Error-Code": code} if code else {})
        elif path.startswith("api/models/"):
            self._send(request, 200, json.dumps(self._info(path)).encode(), {})
        else:
            self._send_file(request, path)

    def _info(self, path: str) -> dict[str, Any]:
        repository = "/".join(path.split("/")[2:4])
        siblings = []
        for name, content in self.files[repository].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "b"}
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        return {"id": repository, "sha": COMMIT, "siblings": siblings}

    def _send_file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        owner, model, _, _, name = path.split("/", 4)
        content = self.files[f"{owner}/{model}"].get(name)
        if content is None:
            self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if name == self.changed:
            content = bytes(reversed(content))
        self._send(request, 200, content, headers, half=name == self.cut)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        half: bool = False,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[: len(content) // 2] if half else content)
            request.close_connection = half
