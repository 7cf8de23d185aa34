"""A Ray of our own: whom its node lets in, and who reads its token (see also test_the_demo)."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services

from dopsd.errors import ResourceError
from dopsd.ray_cluster import local
from dopsd.ray_cluster.local import keep_token_private, start_local
from dopsd.ray_cluster.ray_private import bound_to_loopback

TOKEN = (".ray", "auth_token")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_alone(home):
    before = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    token = home.joinpath(*TOKEN)
    first = token.read_text()
    assert mode(token) == 0o600 and len(bytes.fromhex(first)) == 32
    assert os.listdir(token.parent) == [token.name]
    keep_token_private()
    assert token.read_text() == first


def test_an_open_token_is_closed(home):
    token = home.joinpath(*TOKEN)
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    keep_token_private()
    assert mode(token) == 0o600 and token.read_text() == "secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_TOKEN_PATH", "/mine")],
)
def test_whoever_brings_a_token_gets_none(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be_written_is_left_to_ray(home):
    (home / ".ray").write_text("a file")
    keep_token_private()


def test_a_local_node_has_the_loopback_address(monkeypatch):
    monkeypatch.delenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, raising=False)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with bound_to_loopback() as bound:
        assert bound and services.get_node_ip_address() == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR not in os.environ


def test_unless_the_environment_asks_for_a_cluster(monkeypatch):
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with bound_to_loopback() as bound:
        assert not bound and ray_constants.ENABLE_RAY_CLUSTER


LATE = "The current node timed out during startup.\nMore of it."


class Starts:
    """ray.init that fails with ``errors``, one a try, and then is there. A part of Ray and a
    process of somebody else's are born at each."""

    def __init__(self, monkeypatch, *errors: str) -> None:
        self.errors, self.up = list(errors), False
        self.parts: list[subprocess.Popen] = []
        self.others: list[subprocess.Popen] = []
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "is_initialized", lambda: self.up)
        monkeypatch.setattr(local, "_address", lambda: "127.0.0.1:1")
        monkeypatch.setattr(local, "_PRIVATE", set())

    def init(self, **options: Any) -> None:
        self.parts.append(sleeper(f"{Path(ray.__file__).parent}/core/raylet"))
        self.others.append(sleeper("/usr/bin/else"))
        if self.errors:
            raise Exception(self.errors.pop(0))
        self.up = True


def sleeper(name: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", name])


@pytest.fixture
def starts(home, monkeypatch) -> Iterator[Callable[..., Starts]]:
    made: list[Starts] = []

    def make(*errors: str) -> Starts:
        made.append(Starts(monkeypatch, *errors))
        return made[-1]

    yield make
    for process in (p for each in made for p in each.parts + each.others):
        process.kill()
        process.wait()


def test_a_ray_that_starts_too_late_is_started_again_and_leaves_nothing(starts):
    found = starts(LATE, LATE)
    start_local({})
    assert len(found.parts) == 3
    for late in found.parts[:2]:
        assert late.wait(timeout=10) == -signal.SIGKILL
    assert [p.poll() for p in (found.parts[2], *found.others)] == [None] * 4


def test_a_ray_that_does_not_start_is_one_line(starts, monkeypatch):
    monkeypatch.setattr(local, "_START_SECONDS", 0.0)
    starts(LATE)
    match = (
        r"^Ray does not start on this machine \(tried 1 times in \d+ s\): .*timed out .*; allowed: "
    )
    with pytest.raises(ResourceError, match=match) as told:
        start_local({})
    assert "\n" not in str(told.value)


def test_what_another_try_would_not_mend_is_told_at_once(starts):
    found = starts("no room in /dev/shm")
    with pytest.raises(ResourceError, match=r"^Ray does not start on this machine: no room"):
        start_local({})
    assert len(found.parts) == 1
