"""`dopsd train` on one page: prepare, preflight, stream, rollout, score, learn, export."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from dopsd.config import RunConfig
from dopsd.config.outputs import Resume
from dopsd.coordinator.actor import launch_coordinator
from dopsd.data.run_data import prepared
from dopsd.driver.context_cache import surely_needed, with_cached_contexts
from dopsd.driver.drawing.while_training import prompts_to_draw
from dopsd.driver.monitoring.death_logs import DeathLogs
from dopsd.driver.monitoring.notices import Notices
from dopsd.driver.monitoring.progress import Show
from dopsd.driver.preflight import before_training
from dopsd.driver.setup.checks import refuse_unless_resumable, tell_left, tell_line, what_is_saved
from dopsd.driver.setup.run_setup import RunSetup, check_place, check_run, claimed_run, reserved
from dopsd.driver.setup.start import decide
from dopsd.driver.summary import Summary, finish
from dopsd.driver.supervisor import Supervisor
from dopsd.errors import InterruptedRun
from dopsd.export import lora_metadata
from dopsd.learner.group import learner_arguments, learner_trainer
from dopsd.ownership.lease import Lease
from dopsd.ownership.scratch import temporary_folder
from dopsd.ray_cluster.connect import end_local
from dopsd.ray_cluster.left_behind import none_left
from dopsd.run_folder.begin import begin_run
from dopsd.run_folder.outputs import check_stranger
from dopsd.signals import end_if_asked, interruptible


def train(
    config: RunConfig,
    show: Show,
    *,
    resume: bool = False,
    replace: bool = False,
    take_over: bool = False,
) -> Summary:
    """Run ``config`` to its end.

    ``resume``: from the newest good checkpoint in the run folder, whatever `run.resume` says.
    ``replace``: even an unfinished run in it may be lost. ``take_over``: even from a living process
    that writes into its folders. Returns the summary, under `run.resume: auto` also that of a run
    that was finished before. Raises a DopsdError with one clear line when it cannot, InterruptedRun
    when a signal ended it (signals.py), and then a Ray that was started here has ended as well.
    """
    began = time.monotonic()
    saved = partial(what_is_saved, config)
    asked: Resume = "require" if resume else config.run.resume
    before: str | Callable[[], str] = saved
    if asked == "never":
        before = "nothing was trained yet; the same command begins again"
    try:
        with interruptible(before):
            # Prepare (driver/setup/, data/prepare/): what cannot work is refused, Ray is joined,
            # the data becomes shards.
            run = check_run(config, show)
            check_stranger(run.config.run.folder)
            # Who looks for a run in the folder, and who removes one, is alone in it
            # (driver/setup/start.py: start, go on, or nothing is left to do).
            with (
                claimed_run(run.config, show, take_over) as lease,
                reserved(run.config, show) as place,
            ):
                start = decide(run.config, asked, replace, partial(tell_line, show))
                if start == "finished":
                    return Summary.read(run.config.run.folder)
                resume = start == "go on"
                check_place(run, resume)
                data = partial(prepared, renew=asked == "never", take_over=take_over)
                setup = RunSetup.open(run, show, place, surely_needed(run.config), data)
                setup = _prepare(setup, resume)
                with interruptible(saved):
                    return _train(setup, resume, lease, began)
    except InterruptedRun:
        end_local()
        raise


def _prepare(setup: RunSetup, resume: bool) -> RunSetup:
    # The base draws what trains beside the data (driver/drawing/prior.py).
    setup.wait_for(*surely_needed(setup.config)(setup.config, setup.roles))
    resumable = partial(refuse_unless_resumable, setup.config)
    setup = setup.with_prior(resumable if resume else lambda: None)
    setup = with_cached_contexts(setup)
    setup.wait_for()
    # Preflight (evaluation/preflight/): can the teacher draw the concept at all?
    if resume:
        setup.show("prepare", resumable(setup.identity))
    else:
        before_training(setup.config, setup.manifest, setup.roles.learner, setup.show)
    return setup


def _train(setup: RunSetup, resume: bool, lease: Lease, began: float) -> Summary:
    begin_run(setup.config, resume, lease, partial(tell_left, setup.show))
    folder = setup.config.run.folder
    notices = Notices(folder, setup.show)
    setup = dataclasses.replace(setup, show=notices)
    since = time.time() - (time.monotonic() - began)
    logs = DeathLogs(folder, partial(tell_line, notices), since)
    # Ray Train keeps notes of its own in a folder; nothing of the run depends on them. Its
    # controller would go on with the learners of a run that was ended.
    with (
        notices,
        temporary_folder("ray-train") as scratch,
        logs.watching(),
        none_left("TrainController"),
    ):
        supervisor = _start(setup, lease, scratch, began, logs)
        status, problems = supervisor.run_to_end()
    if status.step < setup.config.learner.steps:
        end_if_asked()

    # Export: the learners wrote the LoRA or the transformer (learner/exporter.py, export.py); the
    # summary, the contact sheet and the run page (evaluation/preview/, report/) come last.
    summary = Summary.of_training(setup, status, problems, supervisor.first_step)
    return finish(summary, setup, began)


def _start(
    setup: RunSetup, lease: Lease, scratch: str, began: float, logs: DeathLogs
) -> Supervisor:
    """The processes of the run, which work at the same time: each step's micro-batches go through
    them in this order, and the learner's new weights go back to the rollout workers."""
    config, roles = setup.config, setup.roles
    # Rollout workers that are idle draw the own prompts (coordinator/drawings.py).
    prompts = prompts_to_draw(config, setup.manifest, roles.learner, setup.show)
    name = f"coordinator-{uuid.uuid4().hex[:8]}"

    # Stream (data/stream/): Ray Data reads shards in plan order and encodes contexts (contexts/).
    # Rollout (rollout/worker.py): the student draws from noise; every state on the way is kept.
    # Score (rollout/worker.py): the teacher, who sees the target, gives its velocity at each state.
    # The coordinator (coordinator/) hands references from one to the next, and never pixels.
    def launch(restarts: int) -> Any:
        manifest, cache = setup.manifest, setup.context_cache
        return launch_coordinator(
            config, roles, manifest, cache, name, restarts, lease, setup.room, prompts
        )

    # Learn (learner/): Ray Train's workers fetch what is scored, take the optimizer step under
    # DeepSpeed (learner/zero/), publish the weights of the next version (policy/), save checkpoints
    # (checkpoint/), and export at the end.
    arguments = learner_arguments(config, setup.preset, name, lora_metadata(config, setup.manifest))

    def learn() -> Any:
        return learner_trainer(config, roles, arguments, scratch).fit()

    return Supervisor(config, launch, learn, setup.show, began, logs.named_in)
