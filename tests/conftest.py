"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopsd.ray_cluster.process import set_up
from tests.gpu import DEVICE as GPU_TESTS
from tests.helpers.faulty_s3 import Faults, FaultyS3
from tests.helpers.ports import free_port

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Of every process that is started from here on, those of Ray and of pytest-xdist as well.
QUICK_START = str(Path(__file__).parent / "helpers" / "quick_start")
if QUICK_START not in os.environ.get("PYTHONPATH", ""):
    paths = [QUICK_START, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

# Ray ends idle workers beyond one per CPU after a second, and each new one imports torch again.
os.environ.setdefault("RAY_num_workers_soft_limit", "12")

# An S3 on this machine. Its address is set while tests are collected: the session's Ray workers
# inherit it, whichever test starts them. Every process of pytest-xdist has its own.
S3_PORT = free_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{S3_PORT}"
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

# On a machine with GPUs the tests run as they do here: nothing that this process starts sees one,
# but where those of tests/gpu are asked for.
set_up(os.environ.get(GPU_TESTS, "cpu"))

# Under nohup the end of the terminal ends nothing, which the tests of signals would pass on.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TIERS = ("ray", "integration", "nightly", "gpu")
"""Markers of the tests that may start Ray; without one of them a test is a unit test. What a tier
is stands in pyproject.toml."""

_LONG = ("driver/test_train.py", "driver/test_full_run.py", "zero/test_engine.py")
"""Files that take minutes."""


def tier(item: pytest.Item) -> str:
    """The slowest tier whose marker a test has; "" for a unit test."""
    return next((name for name in reversed(TIERS) if item.get_closest_marker(name)), "")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who needs the cluster is of the tier ``ray`` at least.

    Unit tests come first, while no test has started Ray yet. Then come the files that take
    minutes: of several test processes, the one that took the last of them would work alone at the
    end. For `--dist loadgroup`: a file's tests of one tier stay together, for what they share.
    """

    def rank(item: pytest.Item) -> tuple[bool, bool, int]:
        path = item.path.as_posix()
        long = next((at for at, name in enumerate(_LONG) if path.endswith(name)), len(_LONG))
        return tier(item) != "", tier(item) == "ray", long

    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) and not tier(item):
            item.add_marker(pytest.mark.ray)
        part = "unit" if not tier(item) else "cluster"
        item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{item.path.name}-{part}"))
    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What collecting has made stays: the garbage collector need not look through it each time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_ray_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """A unit test that starts Ray fails: it would make the first tier slow, unseen."""
    yield
    ray = sys.modules.get("ray")
    if not tier(request.node) and ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail(f"a unit test started Ray; allowed with a marker: {', '.join(TIERS)}")


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
def tiny_krea2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for Krea 2 (see tests/helpers/tiny_krea2.py)."""
    from tests.helpers.tiny_krea2 import save_krea2

    return save_krea2(tmp_path_factory.mktemp("krea2"))


@pytest.fixture(scope="session")
def tiny_qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for Qwen-Image 2.1 (see tests/helpers/tiny_qwen_image.py)."""
    from tests.helpers.tiny_qwen_image import save_qwen_image

    return save_qwen_image(tmp_path_factory.mktemp("qwen_image"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for every test that needs actors: 4 logical CPUs on 2 real ones."""
    import ray

    from dopsd.ray_cluster.connect import ENVIRONMENT, NAMESPACE
    from dopsd.ray_cluster.local import start_local

    start_local(ENVIRONMENT, num_cpus=4, namespace=NAMESPACE, object_store_memory=512 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[FaultyS3]:
    """An S3 server behind a proxy that can be told to fail (see the fixture ``faults``)."""
    from moto.server import ThreadedMotoServer

    from dopsd.files import storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    proxy = FaultyS3(S3_PORT, server.get_host_and_port())
    proxy.start()
    fs, _ = storage.filesystem("s3://dopsd-test")
    fs.mkdir("dopsd-test")
    with pytest.MonkeyPatch.context() as patch:
        # What a claim waits for on a server without conditional writes; this one has them.
        patch.setattr("dopsd.ownership.lease._SETTLE_SECONDS", 0.0)
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
