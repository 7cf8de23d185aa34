"""Ports of this machine."""

from __future__ import annotations

import contextlib
import socket

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(process: psutil.Process) -> dict[str, str]:
    """{address and port: program} of every TCP socket on which a process or a child of it listens.

    IPv4 addresses on sockets of IPv6 are given as the IPv4 addresses that they are.
    """
    found = {}
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for used in each.net_connections("tcp"):
                if used.status == psutil.CONN_LISTEN:
                    host = used.laddr.ip.removeprefix("::ffff:")
                    found[f"{host}:{used.laddr.port}"] = each.name()
    return found
