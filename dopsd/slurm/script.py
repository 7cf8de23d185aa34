"""What `dopsd job --kind sbatch` prints: a run on the nodes of one allocation.

The nodes share a file system, and with it the environment and the token of whoever submits.
"""

from __future__ import annotations

import re
import shlex
import uuid
from dataclasses import dataclass
from typing import Any

from dopsd import shown
from dopsd.config import RunConfig, dump_config
from dopsd.config.load import validated
from dopsd.credentials import holds_credentials
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.kuberay.groups import groups_of
from dopsd.kuberay.names import is_bucket, name_of
from dopsd.kuberay.pods import HEALTH
from dopsd.kuberay.sizes import GroupSize, roles_of, sizes_of
from dopsd.kuberay.windows import Windows
from dopsd.plan import make_plan

_PARTITION = re.compile(r"[\w.-]+(,[\w.-]+)*")
_PORT = 6379
_START_SECONDS = 600
"""Nodes of an allocation import Ray from one file system, all at once; Ray's own 30 s are few."""
_TEARDOWN = 60
"""Seconds: Ray stops, and SLURM looks at its clock this seldom."""


@dataclass(frozen=True)
class BatchJob:
    """What is asked for."""

    config: RunConfig
    folder: str
    """Under which runs and shards lie: s3://, or absolute and shared by all nodes."""
    partition: str | None = None
    gpus_of_a_node: int = 4

    @property
    def name(self) -> str:
        """As Kubernetes takes names. Raises ConfigError for one that cannot be."""
        return name_of(self.config)


def script(job: BatchJob) -> str:
    """The script, for `sbatch`. Raises ConfigError and ModelError in one line."""
    _check(job)
    config = on_nodes(job)
    plan = make_plan(config)
    groups = groups_of(roles_of(config), spot=False)
    sizes = sizes_of(config, plan, groups, job.gpus_of_a_node, volume=True)
    (workers,) = sizes.groups
    # The first node has the head beside its workers.
    memory = workers.pod.memory + sizes.head.memory
    window = Windows.of(plan).stop + _TEARDOWN
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in _options(job, workers, memory, window)),
            *_body(job, config, window),
        ]
    )


def on_nodes(job: BatchJob) -> RunConfig:
    """The config as the run has it there: gone on with whenever it is started again."""
    values: dict[str, Any] = job.config.model_dump(mode="json")
    run, data, root = values["run"], values["data"], job.folder.rstrip("/")
    run |= {"folder": storage.join(root, "runs", job.name), "resume": "auto", "overwrite": False}
    data["shards"] = data["shards"] or storage.join(root, "shards", job.name)
    return validated(values, "of the job")


def _check(job: BatchJob) -> None:
    """Raises ConfigError."""
    folder = job.folder
    if not (is_bucket(folder) if storage.is_remote(folder) else _is_shared(folder)):
        raise ConfigError(
            f"--bucket: {shown.value(folder)}, allowed with --kind sbatch: an absolute folder that "
            "all nodes share, s3://BUCKET or s3://BUCKET/FOLDER, without credentials"
        )
    if job.partition is not None and not _PARTITION.fullmatch(job.partition):
        raise ConfigError(
            f"--queue: {job.partition!r}, allowed with --kind sbatch: a partition, or several "
            "separated by commas"
        )
    for role in roles_of(job.config):
        if role.labels:
            raise ConfigError(
                f"{role.name}.labels: given with --kind sbatch, allowed: none (the nodes of an "
                "allocation are alike)"
            )


def _is_shared(folder: str) -> bool:
    """Whether it can be a folder that all nodes see by this name: one of its own, not the root."""
    return (
        folder.startswith("/")
        and bool(folder.strip("/ "))
        and folder.isprintable()
        and not holds_credentials(folder)
    )


def _options(job: BatchJob, workers: GroupSize, memory: int, window: int) -> list[str]:
    gpus = workers.pod.gpus
    return [
        f"job-name={job.name}",
        *([f"partition={job.partition}"] if job.partition else []),
        f"nodes={workers.pods}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={gpus}"] if gpus else []),
        f"cpus-per-task={workers.pod.cpus}",
        f"mem={memory}G",
        "exclusive",
        "time=24:00:00",
        # To this shell alone: Ray has to live while the run saves. And no TERM, which is scancel's.
        f"signal=B:USR1@{window}",
        "requeue",
        "open-mode=append",
        "output=%x-%j.log",
    ]


def _body(job: BatchJob, config: RunConfig, window: int) -> list[str]:
    text = dump_config(config).rstrip("\n")
    end = f"END-{uuid.uuid5(uuid.NAMESPACE_OID, text).hex}"  # in no config, and always the same
    ray = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        **HEALTH,
        "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": str(_START_SECONDS),
    }
    return _BODY.format(
        name=job.name,
        end=end,
        config=text,
        folder=shlex.quote(config.run.folder),
        exports="\n".join(f"export {key}={value}" for key, value in ray.items()),
        port=_PORT,
        gpus='--num-gpus="$SLURM_GPUS_ON_NODE"' if _has_gpus(config) else "--num-gpus=0",
        window=window,
    ).split("\n")


def _has_gpus(config: RunConfig) -> bool:
    return any(role.gpus for role in roles_of(config))


_BODY = """\
#
# One run on SLURM: give this to `sbatch` in a shell in which dopsd's environment is active, in the
# folder where the config's relative paths begin, on a file system that all nodes share. Options
# of sbatch come before those above. {window} s before the time limit the run is ended with a
# checkpoint and the job put into the queue again, where a step was saved since it began; it goes on
# from there. With `scancel` it ends, and stays ended.
set -euo pipefail

{exports}
ray get-auth-token --generate > /dev/null # in the home folder, which all nodes share

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
cat > "$work/run.yaml" <<'{end}'
{config}
{end}

# This shell is on the first node, which becomes the head. A node's own name may lead to its
# loopback; where the first address is of the wrong network, DOPSD_HEAD_ADDRESS says another.
address=${{DOPSD_HEAD_ADDRESS:-$(hostname -I | cut --delimiter=' ' --fields=1)}}

# Where the run stands: the step of its newest checkpoint.
newest() {{
  {{ dopsd status {folder} 2> /dev/null || true; }} |
    sed --quiet 's/^  checkpoint  step \\([0-9]*\\).*/\\1/p'
}}
before=$(newest)

# The run alone is told, by the number that it leaves; before it is there, the step is.
asked='' ended='' heard='' step=''
end() {{
  if [[ -s $work/pid ]]; then kill -TERM "$(cat "$work/pid")"; else kill -TERM "$step"; fi
}}
trap 'asked=yes heard=yes; end || true' USR1
trap 'ended=yes heard=yes; end || true' TERM

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
  --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
  ray symmetric-run --address "$address:{port}" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  --num-cpus="$SLURM_CPUS_PER_TASK" {gpus} \\
  -- bash -c 'export RAY_ADDRESS=$2; echo $$ > "$1/pid"; exec dopsd train "$1/run.yaml"' \
  {name} "$work" "$address:{port}" &
step=$!

# A signal ends the wait and not the step, whose code the shell knows also when it has ended since.
heard=yes
while [[ -n $heard ]]; do
  heard='' code=0
  wait "$step" || code=$?
done
if [[ ! -s $work/pid && -z $asked$ended ]]; then
  echo 'Ray did not start' >&2 # of which `ray symmetric-run` makes no exit code
  if [[ $code -eq 0 ]]; then code=1; fi
fi
if [[ -n $asked && -z $ended && $code -ne 0 ]]; then
  after=$(newest)
  if [[ -n $after && $after != "$before" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo 'no step was saved since the job began: not queued again; allowed: a longer --time' >&2
  fi
fi
exit "$code"
"""
