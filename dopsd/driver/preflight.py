"""The preflight as one Ray task before the roles start, its files, and what a person reads.

It runs first, on a learner's share, because what it finds should cost as little as possible: the
learners' devices are the largest and still free, and a refused run has loaded no role.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import partial

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, ContextView, EncoderFactory
from dopsd.data.manifest import Manifest
from dopsd.data.run_data import prepared, preview_samples
from dopsd.driver.monitoring.progress import Report, Show
from dopsd.driver.setup.checks import refuse_existing
from dopsd.driver.setup.run_setup import RunSetup, check_run, claimed_run, reserved
from dopsd.errors import DataError, DeadlineError, PreflightError, WorkerError
from dopsd.evaluation.preflight.check import Preflight, check_teacher
from dopsd.evaluation.preflight.distance import choose_metric
from dopsd.models.pretrained import MissingWeights
from dopsd.ray_cluster.placement import Role
from dopsd.ray_cluster.task import run_task
from dopsd.run_folder.files import PREFLIGHT, PREFLIGHT_REPORT, PREFLIGHT_SHEET, RunFolder
from dopsd.run_folder.outputs import owned

_REPEATED = re.compile(r"(<[^<>]+>)\1+")


class NoPicturesError(DataError):
    """Of data that is texts alone there is no verdict."""


def preflight(config: RunConfig, show: Show, take_over: bool = False) -> Preflight:
    """`dopsd preflight`: the check alone, whatever ``preflight.mode`` says of training.

    Raises PreflightError in strict mode when the teacher was not shown to be closer, LeaseHeld when
    another process writes into the run folder, unless ``take_over``.
    """
    run = check_run(config, show)
    with claimed_run(run.config, show, take_over), reserved(run.config, show) as place:
        refuse_existing(run.config)
        data = partial(prepared, take_over=take_over)
        setup = RunSetup.open(run, show, place, lambda _, roles: [_role(roles.learner)], data)
        setup.wait_for(_role(setup.roles.learner))
        return check(setup.config, setup.manifest, setup.roles.learner, show)


def before_training(config: RunConfig, manifest: Manifest, learner: Role, show: Show) -> None:
    """The check as training wants it: nothing in mode `off` or without a teacher (sft), a report
    in mode `warn`.

    Raises PreflightError in strict mode when the teacher was not shown to be closer. A check that
    fails, times out, lacks its metric's model or any picture to compare with ends the run in strict
    mode only.
    """
    # A report of an older run in the same folder is none of this one.
    own = owned(config.run.folder)
    own.remove([name for name in own.entries() if name.startswith(f"{PREFLIGHT}/")])
    if config.preflight.mode == "off" or config.method.objective == "sft":
        return
    try:
        check(config, manifest, learner, show)
    except (DeadlineError, WorkerError, MissingWeights, NoPicturesError) as error:
        if config.preflight.mode == "strict":
            raise
        show(PREFLIGHT, Report([f"WARNING: no preflight: {error}"]))


def _role(learner: Role) -> Role:
    return dataclasses.replace(learner, name=PREFLIGHT, workers=1)


def check(
    config: RunConfig,
    manifest: Manifest,
    learner: Role,
    show: Show,
    encoder_factory: Callable[[], ContextEncoder] | None = None,
) -> Preflight:
    """Run the check and write its files into the run folder.

    ``learner``: whose share the task takes. ``encoder_factory``: what the teacher sees, if not
    what the config says. Raises as ``run_task`` does, and PreflightError.
    """
    samples = preview_samples(config, manifest, config.preflight.samples, pictured=True)
    if not samples:
        raise NoPicturesError(
            "no sample has a picture that the teacher's could be held against (preflight.mode: off "
            "says nothing of it)"
        )
    metric = choose_metric(config.preflight, [sample.target for sample in samples])
    count = f"{len(samples)} samples x {config.preflight.num_noises}"
    show(PREFLIGHT, f"{count} noises, by student and teacher")
    role = _role(learner)
    result: Preflight = run_task(
        PREFLIGHT,
        f"drawing {count}",
        role,
        config.timeouts.startup + config.timeouts.step,
        check_teacher,
        config,
        samples,
        metric,
        encoder_factory or EncoderFactory(config, role.device),
        role.device,
    )
    run = RunFolder(config.run.folder)
    text = json.dumps(result.record(), indent=1, ensure_ascii=False) + "\n"
    own = owned(config.run.folder)
    own.claim(f"{PREFLIGHT}/")
    own.write_all({PREFLIGHT_SHEET: result.sheet, PREFLIGHT_REPORT: text.encode()})
    show(PREFLIGHT, Report(report_lines(result, run)))
    if config.preflight.mode == "strict" and not result.verdict.can_teach:
        raise PreflightError(
            f"preflight: {result.verdict.sentence()}; preflight.mode: strict, allowed: a teacher "
            "that was shown to be closer"
        )
    return result


def report_lines(result: Preflight, run: RunFolder) -> list[str]:
    """The verdict, where to look, and what student and teacher read."""
    prefix = "Preflight: " if result.verdict.can_teach else "WARNING: preflight: "
    lines = [
        prefix + result.verdict.sentence(),
        f"  pictures       {run.file(PREFLIGHT_SHEET)}",
        f"  every number   {run.file(PREFLIGHT_REPORT)}",
        ("  WARNING: " if result.framing.zooms else "  framing        ")
        + result.framing.sentence(),
    ]
    for role in ("student", "teacher"):
        views: list[ContextView] = [getattr(sample, f"{role}_context") for sample in result.samples]
        tokens = [view.tokens for view in views]
        lines += [
            f"  {role} reads  {_shown(views[0].text)}",
            f"                 {min(tokens)} to {max(tokens)} tokens in {len(views)} samples, "
            f"{views[0].limit} are kept{_pictures(views)}",
        ]
        cut = [sample.sample_id for sample, view in zip(result.samples, views) if view.truncated]
        if cut:
            lines.append(
                f"  WARNING: {len(cut)} of {len(views)} {role} contexts are cut at "
                f"{views[0].limit} tokens: {', '.join(cut)}"
            )
    return lines


def sample_lines(result: Preflight) -> list[str]:
    """One line of distances and tokens for each sample, and the text that each role reads."""
    lines = []
    for sample in result.samples:
        student, teacher = (sum(d) / len(d) for d in (sample.student, sample.teacher))
        lines.append(
            f"{sample.sample_id}: {result.verdict.metric} distance student {student:.3f}, "
            f"teacher {teacher:.3f}"
        )
        for role, view in (
            ("student", sample.student_context),
            ("teacher", sample.teacher_context),
        ):
            cut = f", cut at {view.limit}" if view.truncated else ""
            cut += _pictures([view])
            lines.append(f"  {role} ({view.tokens} tokens{cut})  {_shown(view.text)}")
    return lines


def _pictures(views: list[ContextView]) -> str:
    counts = sorted({view.references for view in views})
    return f"; reference pictures: {', '.join(map(str, counts))}" if counts != [0] else ""


def _shown(text: str) -> str:
    """A templated text on one line, its image placeholders counted."""

    def counted(match: re.Match[str]) -> str:
        return f"{match[1]} x{len(match[0]) // len(match[1])} "

    return _REPEATED.sub(counted, text).replace("\n", "\\n")
