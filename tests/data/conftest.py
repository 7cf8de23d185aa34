"""An S3 that listens on this machine; its address must be known before Ray starts its workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    S3_PORT: int = _probe.getsockname()[1]

# Set while tests are collected: the session's Ray workers inherit it, whichever test is first.
os.environ.setdefault("AWS_ENDPOINT_URL", f"http://127.0.0.1:{S3_PORT}")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of an empty S3 bucket."""
    from moto.server import ThreadedMotoServer

    from dopsd import storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=S3_PORT)
    server.start()
    fs, _ = storage.filesystem("s3://dopsd-test")
    fs.mkdir("dopsd-test")
    yield "s3://dopsd-test"
    server.stop()
