"""What each loss costs: `python -m tests.deploy.costs --folder runs/costs [--only NAME ...]`.

Trains the shapes demo on Ray nodes of this machine, one role's pod each, and disturbs it once per
row. A row's seconds are those without a step that is new: from the loss to the first step beyond
the last one before it. Rows that a folder's `costs.json` holds are not measured again. Whole heads:
`pytest -m nightly tests/deploy/test_lost_head.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd.driver.verify import verify_run
from tests.deploy.heads import RAY, Head, finished
from tests.deploy.nodes import Nodes, await_step, trained
from tests.helpers.faulty_s3 import FaultyS3
from tests.helpers.ports import free_port
from tests.helpers.stub_hub import StubHub

LIMIT = 900.0
STEPS, STRUCK, SAVED = 60, 22, 5
"""Steps of a run, the step after which it is struck, and those between checkpoints."""
AWAY = 60.0
WORDS = [
    f"learner.steps={STEPS}",
    f"checkpoint.every_steps={SAVED}",
    *("preview.samples=0", "preflight.mode=off", "learner.workers=1"),
]
PODS = {"inference": ("encoder", "rollout", "teacher"), "learner": ("learner",)}
"""Label of a node -> the roles that only such nodes hold."""
CPUS = {"inference": 2, "learner": 3}
"""Of a node; the head has as many as the first."""


@dataclass(frozen=True)
class Cost:
    """``again``: steps that were trained twice; ``lost``: samples of the plan in no step."""

    seconds: float
    again: int
    lost: int
    note: str = ""


def cost(run: Path, seconds: float, note: str = "") -> Cost:
    """Of a run that has ended; its ledger must agree with its plan."""
    report = verify_run(str(run))
    assert report.agrees and report.steps == STEPS, report.lines()
    return Cost(round(seconds, 1), report.again, report.lost, note)


def until_new(process: subprocess.Popen, run: Path, log: Path, struck: float) -> float:
    """Seconds since ``struck`` until a step is trained that none was trained before."""
    before = max(entry["step"] for entry in trained(run))
    await_step(process, run, log, LIMIT, step=before + 1)
    return time.monotonic() - struck


@contextlib.contextmanager
def pods(folder: Path) -> Iterator[tuple[Nodes, subprocess.Popen, Path]]:
    """A head and a node for each of PODS, and a run on them that has trained STRUCK steps; it is
    waited for, and must end well."""
    folder.mkdir(parents=True)
    run, log = folder / "run", folder / "train.log"
    nodes = Nodes(folder, {"RAY_health_check_period_ms": "1000"})
    try:
        nodes.start("head", CPUS["inference"], "127.0.0.1", free_port())
        nodes.wait("head")
        for name in PODS:
            start(nodes, name, name)
        labels = [f"{role}.labels={{pod: {pod}}}" for pod, roles in PODS.items() for role in roles]
        process = nodes.train(Path("configs/shapes.yaml"), run, [*WORDS, *labels])
        await_step(process, run, log, LIMIT, step=STRUCK)
        yield nodes, process, run
        assert process.wait(timeout=LIMIT) == 0, log.read_text()[-4000:]
    finally:
        nodes.stop()


def start(nodes: Nodes, name: str, label: str) -> None:
    """A pod, as a cluster starts another one in the place of one that went."""
    nodes.start(name, CPUS[label], "127.0.0.1", 0, words=["--labels", f"pod={label}"])
    nodes.wait(name)


def killed(pod: str) -> Callable[[Path], Cost]:
    """A node and all on it, without a word; another one starts at once."""

    def measure(folder: Path) -> Cost:
        with pods(folder) as (nodes, process, run):
            struck = time.monotonic()
            nodes.kill(pod)
            start(nodes, "another", pod)
            seconds = until_new(process, run, folder / "train.log", struck)
        return cost(run, seconds)

    return measure


def announced(folder: Path) -> Cost:
    """The learner's node goes in two minutes; another one starts at the notice."""
    with pods(folder) as (nodes, process, run):
        struck = time.monotonic()
        nodes.announce_end(cpus=CPUS["learner"], seconds=120)
        start(nodes, "another", "learner")
        seconds = until_new(process, run, folder / "train.log", struck)
        nodes.kill("learner")
    return cost(run, seconds)


def stopped(folder: Path) -> Cost:
    """`ray job stop`, and the same words again once the job has ended."""
    folder.mkdir(parents=True)
    run, head = folder / "run", Head()
    head.environment["RAY_JOB_STOP_WAIT_TIME_S"] = "300"
    words = ["jobs/train.py", "configs/shapes.yaml", *WORDS]
    words += [f"run.folder={run}", "run.resume=auto"]
    try:
        head.start()
        first, log = head.submit(*words), folder / "train.log"
        log.touch()
        await_step(first, run, log, LIMIT, step=STRUCK)
        command = [RAY, "job", "list", "--address", head.address]
        jobs = subprocess.run(
            command, env=head.environment, capture_output=True, text=True, check=True
        ).stdout
        name = jobs.partition("submission_id='")[2].partition("'")[0]
        struck = time.monotonic()
        command = [RAY, "job", "stop", "--address", head.address, name]
        subprocess.run(command, env=head.environment, capture_output=True, check=True)
        finished(first, LIMIT)
        ended = time.monotonic() - struck
        second = head.submit(*words)
        seconds = until_new(second, run, log, struck)
        code, output = finished(second, LIMIT)
        assert code == 0, output
    finally:
        head.remove()
    return cost(run, seconds, f"{ended:.0f} s until the job had ended")


def storage_away(folder: Path) -> Cost:
    """Every request to S3 is dropped for AWAY seconds."""
    from moto.server import ThreadedMotoServer

    from dopsd.files import storage

    folder.mkdir(parents=True)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    proxy = FaultyS3(free_port(), server.get_host_and_port())
    proxy.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
        **{key: "testing" for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    run, log = "s3://costs/run", folder / "train.log"
    try:
        storage.filesystem(run)[0].mkdir("costs")
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dopsd", "train", "shapes", *WORDS, f"run.folder={run}"],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        await_step(process, run, log, LIMIT, step=STRUCK)
        before, struck = len(proxy.faults.requests), time.monotonic()
        dropped = proxy.faults.add("drop", times=10**9)
        time.sleep(AWAY)
        proxy.faults.active.remove(dropped)
        assert len(proxy.faults.requests) > before
        # Steps are trained on while it is away; what waits is their record.
        seconds = until_new(process, run, log, struck)
        assert process.wait(timeout=LIMIT) == 0, log.read_text()[-4000:]
        return cost(run, seconds, f"of these {AWAY:.0f} s away, {dropped.hits} requests dropped")
    finally:
        proxy.stop()
        server.stop()


def hub_away(folder: Path) -> Cost:
    """The hub answers 503 when the run starts: nothing has begun, and the same words begin it."""
    words = [sys.executable, "-m", "dopsd", "train", "shapes", *WORDS]
    words += [f"run.folder={folder / 'run'}", "model.base=owner/base"]
    with StubHub({}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub")}
        environment.pop("HF_HUB_OFFLINE", None)
        hub.answer = (503, "")
        began = time.monotonic()
        process = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        seconds = time.monotonic() - began
    said = (process.stdout + process.stderr).strip().splitlines()[-1]
    assert process.returncode and "owner/base: 503" in said, said
    assert not (folder / "run").exists()
    return Cost(round(seconds, 1), 0, 0, "until its line; nothing had begun")


ROWS: dict[str, Callable[[Path], Cost]] = {
    "inference node killed": killed("inference"),
    "learner node killed": killed("learner"),
    "learner node announced to go": announced,
    "ray job stop": stopped,
    f"S3 away {AWAY:.0f} s": storage_away,
    "hub away at start": hub_away,
}


def table(costs: dict[str, Cost]) -> list[str]:
    lines = [
        "| what | seconds without a new step | steps trained again | samples lost | |",
        "|---|---:|---:|---:|---|",
    ]
    for name, each in costs.items():
        lines.append(f"| {name} | {each.seconds:.0f} | {each.again} | {each.lost} | {each.note} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/costs"))
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "costs.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    costs = {name: Cost(**values) for name, values in known.items()}
    for name in options.only:
        if name not in costs:
            print(f"{name} ...", flush=True)
            costs[name] = ROWS[name](folder / name.replace(" ", "-"))
            ordered = {row: asdict(costs[row]) for row in ROWS if row in costs}
            record.write_text(json.dumps(ordered, indent=1))
    print("\n".join(table({row: costs[row] for row in ROWS if row in costs})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
