"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    S3_PORT: int = _probe.getsockname()[1]

# An S3 on this machine. Its address is set while tests are collected: the session's Ray workers
# inherit it, whichever test starts them. Every process of pytest-xdist has its own.
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{S3_PORT}"
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

import pytest
import torch

from tests.helpers.faulty_s3 import Faults, FaultyS3

torch.set_num_threads(1)

_LONG = (
    *("runtime/test_train.py", "cluster/test_nodes.py", "runtime/test_objectives.py"),
    *("runtime/test_contexts.py", "runtime/test_full_run.py", "runtime/test_flux2.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: of several test processes, the one that takes the last of
    them would work alone at the end."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, name in enumerate(_LONG) if path.endswith(name)), len(_LONG))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock pipeline folder with a VLM, at toy size (see tests/helpers/tiny.py)."""
    from tests.helpers.tiny import save_base

    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for FLUX.2-klein (see tests/helpers/tiny_flux2.py)."""
    from tests.helpers.tiny_flux2 import save_flux2

    return save_flux2(tmp_path_factory.mktemp("flux2"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for every test that needs actors: 4 logical CPUs on 2 real ones."""
    import ray

    from dopsd.ray_cluster.connect import NAMESPACE

    ray.init(
        address="local",
        num_cpus=4,
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[FaultyS3]:
    """An S3 server behind a proxy that can be told to fail (see the fixture ``faults``)."""
    from moto.server import ThreadedMotoServer

    from dopsd import storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    proxy = FaultyS3(S3_PORT, server.get_host_and_port())
    proxy.start()
    fs, _ = storage.filesystem("s3://dopsd-test")
    fs.mkdir("dopsd-test")
    yield proxy
    proxy.stop()
    server.stop()


@pytest.fixture(scope="session")
def bucket(s3: FaultyS3) -> str:
    """URL of an S3 bucket."""
    return "s3://dopsd-test"


@pytest.fixture
def faults(s3: FaultyS3) -> Iterator[Faults]:
    """Faults of the S3 server for one test."""
    s3.faults.clear()
    yield s3.faults
    s3.faults.clear()
