"""`ray job submit` against a real local cluster with token authentication on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers.loras import read_lora
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.runs import run_config, write_images

pytestmark = pytest.mark.integration

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS, JOB_SECONDS = 120, 420


@pytest.fixture(scope="module")
def cluster():
    """(dashboard address, environment with the token) of a cluster of its own."""
    # Ray's sockets lie in it, and a socket's path is 107 bytes at most: pytest's own is too long.
    folder = Path(tempfile.mkdtemp(prefix="dopsd-"))
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    environment = {
        **os.environ,
        # As in an activated environment: the job's `python` is the one with the packages.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    dashboard = free_port()
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        "--node-ip-address=127.0.0.1",
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=300000000",
        "--temp-dir",
        str(folder / "r"),
    ]
    log = (folder / "start.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            listed = subprocess.run(
                [RAY, "job", "list", "--address", address],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if listed.returncode == 0:
                break
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"no cluster: {(folder / 'start.log').read_text()} {listed.stderr}")
            time.sleep(1)
        yield address, environment
    finally:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it never came up
            head = psutil.Process(process.pid)
            family = [head, *head.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=10)
        for member in alive:
            member.kill()
        shutil.rmtree(folder, ignore_errors=True)


def submit(cluster, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    return subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address",
            address,
            "--working-dir",
            ".",
            "--",
            "python",
            script,
            *arguments,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    config = run_config(
        tiny_base,
        folder / "run",
        write_images(folder / "images", [(32, 32)] * 4),
        data={"shards": str(folder / "shards"), "bucket_multiple": 4},
        method={"steps": 2},
        learner={"cpus": 0.5, "steps": 9},
        preview={"samples": 1},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_prepare_then_train_as_jobs(cluster, recipe):
    prepared = submit(cluster, "jobs/prepare.py", str(recipe))
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert (recipe.parent / "shards" / "manifest.json").is_file()
    trained = submit(cluster, "jobs/train.py", str(recipe), "learner.steps=2")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert re.search(r"Done: 2 steps in \d+:\d\d", trained.stdout)
    assert read_lora(str(recipe.parent / "run" / "lora.safetensors"))
    assert (recipe.parent / "run" / "preview" / "contact_sheet.png").is_file()


def test_a_wrong_config_fails_the_job_with_its_one_line(cluster, recipe):
    result = submit(cluster, "jobs/train.py", str(recipe), "learner.lrr=1")
    assert result.returncode != 0
    line = "dopsd: learner.lrr: unknown key (did you mean lr?); allowed: workers"
    assert line in result.stdout + result.stderr


def test_without_the_token_nothing_is_accepted(cluster, recipe, tmp_path):
    address, environment = cluster
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    environment = {**environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    result = submit((address, environment), "jobs/train.py", str(recipe))
    assert result.returncode != 0
    assert "uthentication" in result.stderr + result.stdout
    assert "submitted successfully" not in result.stdout
