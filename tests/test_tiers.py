"""The tiers of tests: a unit test starts no Ray; tests of a file and tier share a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TESTS = """
import sys
import pytest
from types import SimpleNamespace

started = {"ray": SimpleNamespace(is_initialized=lambda: True, shutdown=lambda: None)}

@pytest.mark.ray
def test_marked(monkeypatch):
    sys.modules["ray"] = started["ray"]

def test_unmarked(monkeypatch):
    sys.modules["ray"] = started["ray"]

def test_without():
    sys.modules.pop("ray", None)
"""


def test_a_unit_test_that_starts_ray_fails(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-rA", "-o", "markers=ray"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASSED", "ERROR"))]
    passed = {line.partition("::")[2] for line in lines if line.startswith("PASSED")}
    assert {"test_marked", "test_without"} <= passed, done.stdout
    (failed,) = (line for line in lines if line.startswith("ERROR"))
    assert "::test_unmarked" in failed and "a unit test started Ray" in done.stdout


def test_tests_that_share_fixtures_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("this is one process, or another way of sharing out")
    assert request.node.nodeid.endswith("@tests-test_tiers.py-unit")
