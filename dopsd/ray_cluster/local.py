"""A Ray of our own on this machine, which nothing outside of it can reach.

Ray listens on every interface of the machine unless its node has the loopback address. A cluster
that others join is one that somebody started (`ray start`), and is joined as it is.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from dopsd import processes
from dopsd.errors import ResourceError, message_line
from dopsd.ray_cluster.ray_private import bound_to_loopback, quiet_about_token, without_log_monitor

LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
_PRIVATE: set[str] = set()
"""Addresses of the clusters that this process started on the loopback address."""
_MARK = "DOPSD_PRIVATE_RAY"
"""In the environment of their workers, of which some are drivers themselves."""
_SOCKETS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Which interface the collectives of gloo and NCCL listen on."""
_START_SECONDS = 240.0
"""Until which a start that came too late is tried again. Ray's raylet gives its agents half a
minute to import what they need and then ends itself, whatever Ray is told."""
_LATE = "timed out during startup"


def start_local(environment: dict[str, str], **options: Any) -> None:
    """``ray.init`` of a fresh cluster on the loopback address; ``environment``: of its workers.

    Token authentication stays as Ray has it by default: on. What the environment says of
    interfaces holds, and RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 lets Ray listen on every one. Raises
    ResourceError when its processes do not come up: after some minutes of tries where Ray says that
    they came too late, as on a machine that is too busy (or where one of them cannot start, which
    Ray tells in the same words), and else at once.
    """
    keep_token_private()
    with bound_to_loopback() as bound:
        if bound:
            sockets = {name: os.environ.get(name, LOOPBACK_INTERFACE) for name in _SOCKETS}
            environment = environment | sockets | {_MARK: "1"}
        with _inherited(environment), quiet_about_token(), without_log_monitor():
            _start(options)
        if bound:
            _PRIVATE.add(_address())


def _start(options: dict[str, Any]) -> None:
    began, tries = time.monotonic(), 0
    while not ray.is_initialized():
        before, tries = processes.descendants(), tries + 1
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, **options)
        except Exception as error:  # Ray has no kind of its own for it
            ray.shutdown()
            _end_parts(before)
            late, waited = _LATE in str(error), time.monotonic() - began
            if late and waited < _START_SECONDS:
                continue
            after = f" (tried {tries} times in {waited:.0f} s)" if late else ""
            raise ResourceError(
                f"Ray does not start on this machine{after}: {message_line(error)}; allowed: the "
                "same command when the machine has less to do, or RAY_ADDRESS of a Ray that runs"
            ) from error


def _end_parts(before: dict[int, str]) -> None:
    """End what a start that failed has left below this process, which would run as long as it: what
    belongs to Ray and was not there ``before``."""
    installed = os.path.dirname(ray.__file__)
    new = {pid: at for pid, at in processes.descendants().items() if before.get(pid) != at}
    processes.kill({pid: at for pid, at in new.items() if installed in processes.command(pid)})


@contextmanager
def _inherited(environment: dict[str, str]) -> Iterator[None]:
    """What is started meanwhile has ``environment``, and so has all that it starts later."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def is_private() -> bool:
    """Whether this process, the one that started it or a worker, is connected to a cluster that
    nobody can join."""
    return ray.is_initialized() and (_MARK in os.environ or _address() in _PRIVATE)


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def keep_token_private() -> None:
    """Nobody but its owner reads the token that Ray keeps in the home folder.

    Ray writes it with the permissions that the umask leaves, so it is made here where there is
    none. A token that the environment names is its owner's affair.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_token(path)
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError:
        return  # Ray reads it, or says why it cannot


def _make_token(path: Path) -> None:
    """Whole or not at all, and whoever comes second keeps the first's."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(aside, path)
    finally:
        aside.unlink()
