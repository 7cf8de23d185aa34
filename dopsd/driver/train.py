"""`dopsd train` on one page: prepare, preflight, stream, rollout, score, learn, export."""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import Any

from dopsd.config import RunConfig
from dopsd.coordinator.actor import launch_coordinator
from dopsd.data.run_data import prepared
from dopsd.driver.checks import refuse_unless_resumable, tell_left, with_resume_command
from dopsd.driver.context_cache import surely_needed, with_cached_contexts
from dopsd.driver.preflight import before_training
from dopsd.driver.progress import Show
from dopsd.driver.setup import RunSetup
from dopsd.driver.summary import Summary, finish
from dopsd.driver.supervisor import Supervisor
from dopsd.errors import DopsdError, InterruptedRun
from dopsd.export import lora_metadata
from dopsd.learner.group import learner_trainer
from dopsd.ray_cluster.connect import NAMESPACE
from dopsd.run_folder.lock import RunLock, locked_run_folder
from dopsd.scratch import temporary_folder


def train(config: RunConfig, show: Show, *, resume: bool = False, replace: bool = False) -> Summary:
    """Run ``config`` to its end.

    ``resume``: from the newest good checkpoint in the run folder. ``replace``: even an unfinished
    run in it may be lost. Raises a DopsdError with one clear line when it cannot, InterruptedRun
    when a SIGTERM ended the run.
    """
    began = time.monotonic()

    # Prepare (driver/setup.py, data/prepare/): what cannot work is refused, Ray is joined, the data
    # becomes shards; the base draws what trains beside it (driver/prior.py).
    data = partial(prepared, renew=not resume)
    setup = RunSetup.open(config, show, data, new_run=not resume, overwrite=replace, trains=True)
    setup.wait_for(*surely_needed(setup))
    resumable = partial(refuse_unless_resumable, setup.config)
    setup = setup.with_prior(resumable if resume else lambda: None)
    setup = with_cached_contexts(setup)
    setup.wait_for()

    # Preflight (evaluation/preflight/): can the teacher draw the concept at all?
    if resume:
        show("prepare", resumable(setup.identity))
    else:
        before_training(setup.config, setup.manifest, setup.roles.learner, show)

    # Ray Train keeps notes of its own in a folder; nothing of the run depends on them.
    told = partial(tell_left, show)
    folder = locked_run_folder(setup.config, resume, told)
    with temporary_folder("ray-train") as scratch, folder as lock:
        supervisor = _start(setup, lock, scratch, began)
        try:
            status = supervisor.run()
        except BaseException as error:
            supervisor.stop()
            if isinstance(error, DopsdError):
                raise with_resume_command(error, setup.config) from None
            raise
        problems = supervisor.notices + supervisor.stop()
    if status.ended and status.step < setup.config.learner.steps:
        stopped = InterruptedRun(f"stopped by SIGTERM after step {status.step}")
        raise with_resume_command(stopped, setup.config)

    # Export: the learners wrote the LoRA or the transformer (learner/exporter.py, export.py); the
    # summary, the contact sheet and the run page (evaluation/preview/, report/) come last.
    summary = Summary.of_training(setup, status, problems, supervisor.first_step)
    return finish(summary, setup, began)


def _start(setup: RunSetup, lock: RunLock, scratch: str, began: float) -> Supervisor:
    """The processes of the run, which work at the same time: each step's micro-batches go through
    them in this order, and the learner's new weights go back to the rollout workers."""
    config, roles = setup.config, setup.roles
    name = f"coordinator-{uuid.uuid4().hex[:8]}"

    # Stream (data/stream/): Ray Data reads shards in plan order and encodes contexts (contexts/).
    # Rollout (rollout/worker.py): the student draws from noise; every state on the way is kept.
    # Score (rollout/worker.py): the teacher, who sees the target, gives its velocity at each state.
    # The coordinator (coordinator/) hands references from one to the next, and never pixels.
    def launch(restarts: int) -> Any:
        manifest, cache = setup.manifest, setup.context_cache
        return launch_coordinator(config, roles, manifest, cache, name, restarts, lock, setup.room)

    # Learn (learner/): Ray Train's workers fetch what is scored, take the optimizer step under
    # DeepSpeed (learner/zero/), publish the weights of the next version (policy/), save checkpoints
    # (checkpoint/), and export at the end.
    arguments = {
        "config": config.model_dump(mode="json"),
        "preset": setup.preset,
        "coordinator": name,
        "namespace": NAMESPACE,
        "metadata": lora_metadata(config, setup.manifest),
    }

    def learn() -> Any:
        return learner_trainer(config, roles, arguments, scratch).fit()

    return Supervisor(config, launch, learn, setup.show, began)
