"""Fixtures of the tests that need a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.gpu import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device = os.environ.get(DEVICE)
    here = Path(__file__).parent
    reason = None
    if device is None:
        reason = "needs a GPU: python -m tests.gpu"
    elif device == "cuda" and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> str:
    return os.environ[DEVICE]


@pytest.fixture
def cuda(device: str) -> str:
    """For what is CUDA's own."""
    if device != "cuda":
        pytest.skip("of CUDA alone")
    return device
