"""`dopsd report RUN --serve`: what is served, to whom, and that the page refreshes itself."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.report.live import LivePage, LiveServer
from dopsd.run_folder.preview_files import prompt_path
from tests.helpers.browser import open_page
from tests.report.test_page import folder, png

__all__ = ["folder"]


@pytest.fixture
def server(folder: Path) -> Iterator[LiveServer]:
    with serving(str(folder)) as server:
        yield server
        server.shutdown()


def serving(folder: str) -> LiveServer:
    server = LiveServer(LivePage(folder, seconds=0.05))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def get(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_the_page_and_the_pictures_that_it_names_are_served(server, folder):
    (folder / "preview" / "secret.png").write_bytes(png(4, 4))
    server.page.seconds = 1000.0
    top = f"/{server.token}"
    status, page = get(server, f"{top}/")
    assert status == 200 and b"<h2>Prompts</h2>" in page
    (folder / prompt_path(6, 0)).unlink()
    (folder / prompt_path(6, 0)).symlink_to(folder / "config.yaml")
    assert get(server, f"{top}/{prompt_path(3, 0)}") == (200, png(128, 64))
    for name in (
        *("config.yaml", "lora.safetensors", "preview/secret.png", "preview/", "report.html"),
        *("../run/config.yaml", "%2e%2e/run/config.yaml", "preview/../config.yaml"),
        *("//etc/passwd", "/etc/passwd", "..%2fconfig.yaml", prompt_path(6, 0), "stamp/"),
    ):
        assert get(server, f"{top}/{name}")[0] == 404, name
    assert get(server, f"{top}/", "HEAD") == (200, b"")
    assert get(server, f"{top}/", "POST")[0] == 501


def test_who_does_not_know_the_token_is_refused(server):
    for path in (
        *("/", "", "/stamp", "/wrong/", f"/{server.token}", f"/{server.token}x/"),
        *(f"/{server.token[:-1]}/", f"/{server.token.swapcase()}/", "/%C3%A4/", "*"),
    ):
        status, text = get(server, path)
        assert status in (400, 403), path
        assert server.token.encode() not in text and b"dopsd" not in text
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example"):
        assert get(server, f"/{server.token}/", Host=host)[0] == 403
    assert get(server, f"/{server.token}/", Host="localhost:9999")[0] == 200
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_is_rendered_anew_when_the_folder_has_changed(folder, bucket):
    told = json.loads((folder / "summary.json").read_bytes())
    (folder / "summary.json").unlink()
    places = [str(folder), f"{bucket}/live"]
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            storage.write_bytes(f"{places[1]}/{name}", path.read_bytes())
    for place in places:
        page = LivePage(place, seconds=1e-9)
        before = page.stamp()
        assert not before["finished"] and b"not finished: step 6 of 6" in page.page()
        assert page.stamp() == before and page.page() is page.page()
        storage.write_bytes(f"{place}/report.html", b"of a `dopsd report` meanwhile")
        storage.write_bytes(f"{place}/summary.json", json.dumps({**told, "page": None}).encode())
        assert not page.stamp()["finished"], "the pictures are still to come"
        storage.write_bytes(f"{place}/summary.json", json.dumps({**told, "page": "x"}).encode())
        after = page.stamp()
        assert after["finished"] and after["stamp"] != before["stamp"]
        assert b"finished, 6 steps" in page.page()


def test_a_folder_that_cannot_be_read_now_is_said_and_may_come_back(server, folder):
    config = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").write_text("learner: {lrr: 1}")
    status, text = get(server, f"/{server.token}/")
    assert status == 503 and b"not a config of this dopsd" in text
    (folder / "config.yaml").write_bytes(config)
    server.page._looked = 0.0
    assert get(server, f"/{server.token}/")[0] == 200


def test_a_browser_shows_what_the_run_writes_meanwhile(folder):
    told = json.loads((folder / "summary.json").read_bytes())
    (folder / "summary.json").unlink()

    class Page(LivePage):
        served = 0

        def page(self) -> bytes:
            page = super().page()
            self.served += 1
            if self.served == 2:  # the first is the browser's own, the second its script's
                (folder / "summary.json").write_text(json.dumps({**told, "page": "x"}))
                (folder / "report.html").write_text("the last of a run")
            return page

    with LiveServer(Page(str(folder), seconds=0.05)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        dom, console = open_page(server.url, "--virtual-time-budget=10000")
        server.shutdown()
    assert console == []
    assert "finished, 6 steps" in dom and "not finished" not in dom
    assert dom.count("<h2>Prompts</h2>") == 1 and 'class="compare"' in dom
    assert "./lora.safetensors" not in dom, "no link to what is not served"


def test_it_ends_cleanly_on_ctrl_c(folder):
    words = [sys.executable, "-m", "dopsd", "report", str(folder), "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None and command.stderr is not None
        line = command.stdout.readline().decode()
        assert line.startswith("The run page, until Ctrl-C: http://127.0.0.1:")
        os.kill(command.pid, signal.SIGINT)
        out, errors = command.communicate(timeout=30)
    assert (command.returncode, errors) == (0, b"")
    assert out.decode() == "The page is served no more.\n"


def test_what_cannot_be_served_is_one_line(folder, tmp_path, capsys, server):
    assert main(["report", str(tmp_path / "no"), "--serve"]) == 1
    assert "no config.yaml; allowed: the folder of a run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"^--port: \d+: .*in use.*; allowed: a free one"):
        LiveServer(LivePage(str(folder)), server.server_port)
    assert main(["report", str(folder), "--port", "8000"]) == 1
    assert capsys.readouterr().err == "dopsd: --port: given without --serve, allowed: with it\n"
    assert json.loads(get(server, f"/{server.token}/stamp")[1])["finished"] in (True, False)
