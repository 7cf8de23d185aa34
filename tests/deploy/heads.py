"""Heads of Ray to which jobs are submitted, and that are lost with every process on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 180.0
POD = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Runs a command as a pod's first process: nothing of it outlives it, and the process ids in its
records mean nothing to the next one."""


class Head:
    """A head with token authentication on, which can be lost and started again.

    ``prefix`` runs a command somewhere else, as ``POD`` does.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        # Ray's sockets lie in it, and a socket's path is 107 bytes at most: pytest's own is too
        # long.
        self.folder = Path(tempfile.mkdtemp(prefix="dopsd-"))
        self.address = ""
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen | None = None
        self._started = 0
        token = self.folder / "token"
        token.write_text("0123456789abcdef" * 4)
        self.environment = {
            **os.environ,
            # As in an activated environment: the job's `python` is the one with the packages.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.environment.pop("RAY_ADDRESS", None)

    def start(self) -> None:
        """With nothing of the one before it, and wait until it takes jobs."""
        self._started += 1
        dashboard = free_port()
        command = [*self._prefix, RAY, "start", "--head", "--block", "--num-cpus=4"]
        command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--ray-client-server-port={free_port()}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--object-store-memory=300000000"]
        command += ["--temp-dir", str(self.folder / f"r{self._started}")]
        log = self.folder / f"start{self._started}.log"
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.address = f"http://127.0.0.1:{dashboard}"
        until = time.monotonic() + START_SECONDS
        while (listed := self._ray("job", "list", "--address", self.address)).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"no cluster: {log.read_text()} {listed.stderr}")
            time.sleep(1)

    def lose(self) -> None:
        """SIGKILL for every process on it, at once."""
        if self._process is None:
            return
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it never came up
            first = psutil.Process(self._process.pid)
            family = [first, *first.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(family, timeout=30)
        self._process = None

    def remove(self) -> None:
        self.lose()
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, *words: str, token: Path | None = None) -> subprocess.Popen:
        """`ray job submit -- python WORDS` from the working tree; its output is one text."""
        environment = dict(self.environment)
        if token is not None:
            environment["RAY_AUTH_TOKEN_PATH"] = str(token)
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", "."]
        return subprocess.Popen(
            [*command, "--", "python", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *words], env=self.environment, capture_output=True, text=True, check=False
        )


def finished(job: subprocess.Popen, limit: float) -> tuple[int, str]:
    """(exit code, output) of a submission; one that takes longer is ended and fails the test."""
    try:
        output, _ = job.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        job.kill()
        output, _ = job.communicate()
        pytest.fail(f"a job took longer than {limit:g} s: {output[-4000:]}")
    return job.returncode, output


def no_pods() -> str | None:
    """Why there are none here; None when there are."""
    try:
        subprocess.run([*POD, "true"], check=True, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "no pods: the command `unshare` (util-linux) is missing"
    except subprocess.CalledProcessError as error:
        return f"no pods: {error.stderr.strip()}"
    return None
