"""Hosts of a cluster on one machine: network namespaces, each on a cable to one switch."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence

_NET = "10.77.0"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


class Hosts:
    """``address`` and ``prefix`` of each host by name; ``cut`` and ``mend`` its cable."""

    def __init__(self, names: Sequence[str]) -> None:
        self.address = {name: f"{_NET}.{number}" for number, name in enumerate(names, 1)}

    def prefix(self, name: str) -> tuple[str, ...]:
        """Runs a command on a host."""
        return ("ip", "netns", "exec", self._space(name))

    def cut(self, name: str) -> None:
        """Nothing passes any more, and nobody is told."""
        self._switch("link", "set", self._port(name), "down")

    def mend(self, name: str) -> None:
        self._switch("link", "set", self._port(name), "up")

    def make(self) -> None:
        """Raises CalledProcessError or FileNotFoundError where namespaces cannot be made."""
        _ip("netns", "add", self._space("switch"))
        self._switch("link", "add", "bridge", "type", "bridge")
        self._switch("link", "set", "bridge", "up")
        for name, address in self.address.items():
            space, port = self._space(name), self._port(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            self._switch("link", "add", port, "type", "veth", "peer", "eth0", "netns", space)
            self._switch("link", "set", port, "master", "bridge", "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Their cables go with them."""
        for name in (*self.address, "switch"):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", self._space(name))

    def _switch(self, *words: str) -> None:
        _ip("-n", self._space("switch"), *words)

    def _space(self, name: str) -> str:
        return f"dopsd-{os.getpid()}-{name}"

    def _port(self, name: str) -> str:
        return f"port{list(self.address).index(name)}"


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Hosts that are gone afterwards; what runs on them is to be ended before."""
    made = Hosts(names)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def why_not() -> str | None:
    """Why hosts cannot be made here; None when they can."""
    try:
        with hosts("probe"):
            return None
    except FileNotFoundError:
        return "no hosts: the command `ip` (iproute2) is missing"
    except subprocess.CalledProcessError as error:
        return f"no hosts: {' '.join(error.cmd)}: {error.stderr.strip()}"
