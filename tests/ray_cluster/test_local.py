"""A Ray of our own: whom its node lets in, and who reads its token (see also test_the_demo)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants, services

from dopsd.errors import ResourceError
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


def test_a_ray_that_does_not_start_is_one_line(home, monkeypatch):
    def late(**options):
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(
        ResourceError, match=r"^Ray does not start .*timed out .*; allowed: "
    ) as told:
        start_local({})
    assert "\n" not in str(told.value)
