"""`dopsd job --kind sbatch`: the script as SLURM, bash and Ray read it, and a time limit that comes
near, with stand-ins for SLURM's commands. Nothing here was ever given to a SLURM."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from dopsd.cli.main import main
from dopsd.config import load_config, parse_config
from dopsd.driver.monitoring.status import RunState, Saved
from dopsd.kuberay.pods import HEALTH
from dopsd.kuberay.sizes import roles_of
from dopsd.plan import make_plan
from dopsd.ray_cluster.packing import Node, place
from dopsd.slurm import BatchJob, script

STAND_INS = {
    # Only the first node runs the command.
    "srun": 'printf "%s\\n" "$@" > "$LOGS/srun"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": """
        [[ $1 == get-auth-token ]] && exit
        [[ $RAY_AUTH_MODE == token ]] || exit 9
        printf "%s\\n" "$@" > "$LOGS/ray"
        ${SLOW_START:-true}
        while [[ $1 != -- ]]; do shift; done
        shift
        "$@"
    """,
    "dopsd": """
        if [[ $1 == status ]]; then cat "$LOGS/status"; exit; fi
        trap 'echo "  checkpoint  step ${STEP:-5}, 1 s ago" > "$LOGS/status"; exit 143' TERM
        echo "$RAY_ADDRESS" > "$LOGS/address"
        cp "$2" "$LOGS/run.yaml"
        ${RUN:-true}
    """,
    "scontrol": 'echo "$@" >> "$LOGS/scontrol"',
    "hostname": "echo 10.1.2.3 192.168.0.1",
}
ENVIRONMENT = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "20",
    "SLURM_GPUS_ON_NODE": "4",
}


def job_of(*overrides: str, recipe: str = "z_image_turbo_lora", gpus: int = 4) -> BatchJob:
    return BatchJob(
        load_config(recipe, ["run.name=a", *overrides]), "/shared/me", gpus_of_a_node=gpus
    )


def options(text: str) -> argparse.Namespace:
    """As sbatch reads them: up to the first command, of those that it has."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in ("job-name", "partition", "mem", "time", "signal", "open-mode", "output"):
        parser.add_argument(f"--{name}")
    for name in ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("exclusive", "requeue"):
        parser.add_argument(f"--{name}", action="store_true")
    lines = text.split("\n")
    assert lines[0] == "#!/bin/bash"
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), "nobody reads it"
    words = [line.removeprefix("#SBATCH ") for line in lines[:first] if line.startswith("#SBATCH")]
    return parser.parse_args([word for line in words for word in shlex.split(line)])


@pytest.fixture
def batch(tmp_path) -> Callable[..., subprocess.Popen]:
    """Starts the script as SLURM does on the first node."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    path = tmp_path / "job.sh"
    path.write_text(script(job_of()))

    def begin(**more: str) -> subprocess.Popen:
        environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "LOGS": str(tmp_path),
            "TMPDIR": str(tmp_path),
        }
        return subprocess.Popen(["bash", str(path)], env=environment | ENVIRONMENT | more)

    return begin


def await_file(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.02)


@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize("recipe", ["z_image_turbo_lora", "z_image_turbo_lora_fused"])
def test_the_nodes_hold_every_role(recipe: str, gpus: int) -> None:
    job = job_of(recipe=recipe, gpus=gpus)
    asked = options(script(job))
    assert asked.ntasks_per_node == 1 and asked.exclusive and asked.gpus_per_node == gpus
    nodes = [Node(str(n), asked.cpus_per_task, gpus) for n in range(asked.nodes)]
    _, left = place(roles_of(job.config), nodes)
    assert max(node.cpus for node in left) >= 1, "Ray Data reads with whole CPUs"


def test_it_is_told_in_time_and_comes_back() -> None:
    job = job_of()
    asked = options(script(job))
    whom, _, seconds = asked.signal.partition("@")
    assert whom == "B:USR1", "Ray has to live while the run saves"
    assert 2 * make_plan(job.config).shipped.seconds < int(seconds) < 65_536
    assert asked.requeue and asked.open_mode == "append"


def test_ray_takes_the_words(batch, tmp_path) -> None:
    assert batch().wait(timeout=60) == 0
    words = (tmp_path / "ray").read_text().split("\n")
    assert words[0] == "symmetric-run"
    own = words[1 : words.index("--")]
    assert own[:4] == ["--address", "10.1.2.3:6379", "--min-nodes", "2"]
    rest = curate_and_validate_ray_start_args(own)
    for role in (["--head", "--port=6379"], ["--address=10.1.2.3:6379", "--block"]):
        context = start.make_context("start", [*role, *rest])
        assert (context.params["num_cpus"], context.params["num_gpus"]) == (20, 4)
    assert (tmp_path / "address").read_text() == "10.1.2.3:6379\n", "else it starts a Ray itself"
    srun = (tmp_path / "srun").read_text().split("\n")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(srun)
    assert not (tmp_path / "scontrol").exists()


def test_the_config_goes_along_and_is_gone_on_with(batch, tmp_path) -> None:
    assert batch().wait(timeout=60) == 0
    config = parse_config((tmp_path / "run.yaml").read_text(), "run.yaml")
    assert config.run.folder == "/shared/me/runs/a" and config.run.resume == "auto"
    assert config.shards == "/shared/me/shards/a"
    assert not list(tmp_path.glob("tmp*")), "the script leaves nothing"


def test_before_the_time_limit_the_run_saves_and_is_queued_again(batch, tmp_path) -> None:
    (tmp_path / "status").write_text("  checkpoint  step 2, 60 s ago\n")
    job = batch(RUN="eval sleep 60 & wait")
    await_file(tmp_path / "run.yaml")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 143
    assert "step 5" in (tmp_path / "status").read_text()
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_where_no_step_was_saved_it_is_not(batch, tmp_path) -> None:
    (tmp_path / "status").write_text("  checkpoint  step 5, 60 s ago\n")
    job = batch(RUN="eval sleep 60 & wait", STEP="5")
    await_file(tmp_path / "run.yaml")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 143
    assert not (tmp_path / "scontrol").exists()


def test_a_run_that_has_not_begun_is_not_queued_again(batch, tmp_path) -> None:
    job = batch(SLOW_START="exec sleep 60")
    await_file(tmp_path / "ray")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 143
    assert not (tmp_path / "scontrol").exists(), "with a short --time it would be for ever"


def test_who_cancels_the_job_ends_it(batch, tmp_path) -> None:
    job = batch(RUN="eval sleep 60 & wait")
    await_file(tmp_path / "run.yaml")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 143
    assert "step 5" in (tmp_path / "status").read_text(), "the run was told"
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_ray_that_does_not_start_fails(batch, capfd, code: int) -> None:
    assert batch(SLOW_START=f"exit {code}").wait(timeout=60) == (code or 1)
    assert capfd.readouterr().err.splitlines() == ["Ray did not start"]


def test_the_step_is_read_from_what_status_says() -> None:
    state = RunState(
        *("runs/a", "training", 9, 10, None, None, None, None, 0),
        *(Saved(7, 1.0), None, [], []),
    )
    assert any(line.startswith("  checkpoint  step 7, ") for line in state.lines())


def test_a_run_that_fails_is_not(batch, tmp_path) -> None:
    assert batch(RUN="exit 1").wait(timeout=60) == 1
    assert not (tmp_path / "scontrol").exists()


def test_it_is_what_the_command_prints(capsys) -> None:
    words = ["job", "z_image_turbo_lora", "run.name=a", "--kind", "sbatch"]
    assert main([*words, "--bucket", "/shared/me", "--queue", "gpu,long"]) == 0
    text = capsys.readouterr().out
    job = job_of()
    assert text == script(BatchJob(job.config, "/shared/me", "gpu,long"))
    assert options(text).partition == "gpu,long"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for key, value in HEALTH.items():
        assert f"export {key}={value}\n" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--bucket: missing"),
        (["--bucket", "shared"], "--bucket: 'shared', allowed with --kind sbatch: an absolute"),
        (["--bucket", "s3://"], "--bucket: 's3://', allowed with --kind sbatch: "),
        (["--bucket", "s3://b/../c"], "--bucket: 's3://b/../c', allowed with --kind sbatch: "),
        (["--bucket", "s3://me:secret@b"], "--bucket: 's3://***@"),
        (["--bucket", "/"], "--bucket: '/', allowed with --kind sbatch: "),
        (["--bucket", "/a?secret_key=hidden"], "--bucket: '/a?secret_key=***', allowed with"),
        (["--bucket", "/a\nb"], "--bucket: '/a\\nb', allowed with --kind sbatch: "),
        (["--bucket", "/a", "--image", "i"], "--image: with --kind sbatch, allowed: none"),
        (["--bucket", "/a", "--spot"], "--spot: with --kind sbatch, allowed: none"),
        (["--bucket", "/a", "--queue", "a b"], "--queue: 'a b', allowed with --kind sbatch: a par"),
        (
            ["--bucket", "/a", "learner.labels={a: b}"],
            "learner.labels: given with --kind sbatch, allowed: none",
        ),
        (["--bucket", "/a", "run.name=7"], "run.name: '7', allowed for a job: letters"),
    ],
)
def test_what_no_batch_job_can_be_is_one_line(words, line, capsys) -> None:
    assert main(["job", "z_image_turbo_lora", "--kind", "sbatch", *words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dopsd: {line}")
