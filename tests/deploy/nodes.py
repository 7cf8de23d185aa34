"""Ray nodes of a cluster of their own, each started as `ray start` starts one."""

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
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dopsd.run_folder.files import LEDGER_FILE
from dopsd.run_folder.jsonl import read_lines

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 180.0


@dataclass
class Nodes:
    """``folder``: of token and logs.

    ``environment``: for every process here, beside this one's. Token authentication is on.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    """Of the head."""
    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    # A socket's path is 107 bytes at most: pytest's own folders are too long.
    session: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="dopsd-"))
    """Ray's folder, with its sockets."""

    def __post_init__(self) -> None:
        token = self.folder / "token"
        token.write_text("0123456789abcdef" * 4)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": str(round(START_SECONDS)),
            "RAY_agent_register_timeout_ms": str(round(START_SECONDS * 1000)),
            **self.environment,
        }

    def start(
        self,
        name: str,
        cpus: int,
        ip: str,
        port: int,
        prefix: tuple[str, ...] = (),
        words: Sequence[str] = (),
        **variables: str,
    ) -> None:
        """A node; the first is the head, which listens on ``port``. ``prefix`` runs a command
        somewhere else; ``words`` and ``variables``: more of `ray start`."""
        role = [f"--address={self.address}"]
        if not self.address:
            self.address = f"{ip}:{port}"
            role = ["--head", f"--port={port}", "--include-dashboard=false"]
            role += ["--temp-dir", self.session]
        command = [*prefix, RAY, "start", "--block", *role, f"--node-ip-address={ip}"]
        command += [f"--num-cpus={cpus}", "--object-store-memory=100000000", *words]
        self.running[name] = self.popen(name, command, **variables)

    def reserve(self, name: str, *overrides: str) -> subprocess.Popen:
        """A run that takes its places on the cluster, and nothing else; it ends with its input."""
        return self.module(name, "tests.helpers.reserving", name, *overrides)

    def module(self, name: str, module: str, *words: str) -> subprocess.Popen:
        """`python -m MODULE` on the cluster."""
        command = [sys.executable, "-m", module, *words]
        self.running[name] = self.popen(name, command, RAY_ADDRESS=self.address)
        return self.running[name]

    def await_line(self, name: str, part: str, limit: float = 120.0) -> float:
        """When a process said a line with ``part``: lines begin with their times."""
        log, until = self.folder / f"{name}.log", time.monotonic() + limit
        while True:
            for line in log.read_text().splitlines():
                if part in line:
                    return float(line.split()[0])
            assert time.monotonic() < until, f"{part}: {log.read_text()[-4000:]}"
            time.sleep(0.2)

    def popen(self, name: str, command: list[str], **variables: str) -> subprocess.Popen:
        """A command in this cluster's environment; its output goes into a log named like it."""
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                command,
                env=self.environment | variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, name: str) -> None:
        """Until a node says that it is up."""
        log, until = self.folder / f"{name}.log", time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert self.running[name].poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.5)

    def train(
        self, config: Path, folder: Path, overrides: list[str], prefix: tuple[str, ...] = ()
    ) -> subprocess.Popen:
        """`dopsd train` on the cluster."""
        command = [*prefix, sys.executable, "-m", "dopsd", "train", str(config)]
        command += [f"run.folder={folder}", *overrides]
        self.running["train"] = self.popen("train", command, RAY_ADDRESS=self.address)
        return self.running["train"]

    def announce_end(self, cpus: int, seconds: int) -> None:
        """Ray is told that the one node with so many CPUs is taken away in so many seconds."""
        look = (
            "import ray; ray.init(address='auto', logging_level='ERROR'); "
            f"print(*(n['NodeID'] for n in ray.nodes() if n['Resources'].get('CPU') == {cpus}))"
        )
        variables = self.environment | {"RAY_ADDRESS": self.address}
        (node,) = subprocess.run(
            [sys.executable, "-c", look], env=variables, check=True, capture_output=True, text=True
        ).stdout.split()
        command = [RAY, "drain-node", "--address", self.address, "--node-id", node]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=variables, check=True, capture_output=True)

    def kill(self, name: str) -> None:
        """SIGKILL for a node and everything on it, at once."""
        process = self.running.pop(name)
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End everything that was started here, the head last."""
        for name in reversed(list(self.running)):
            self.kill(name)
        shutil.rmtree(self.session, ignore_errors=True)


def trained(folder: Path) -> list[dict]:
    """What the ledger says of each trained step so far, those that were replaced included."""
    return [entry for entry in read_lines(str(folder / LEDGER_FILE)) if "step" in entry]


def await_step(
    process: subprocess.Popen, folder: Path, log: Path, limit: float, **least: int
) -> dict:
    """The first trained step with no value below ``least`` (`step`, `attempt`)."""
    until = time.monotonic() + limit
    while True:
        for entry in trained(folder):
            if all(entry[key] >= value for key, value in least.items()):
                return entry
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.2)
