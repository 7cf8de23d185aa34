"""All that is looked at, in order; one look that fails by itself does not end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dopsd.config import RunConfig
from dopsd.driver.doctor.data import check_data
from dopsd.driver.doctor.finding import Finding
from dopsd.driver.doctor.gpu import check_gpus
from dopsd.driver.doctor.hub import check_models, is_cached, models_of
from dopsd.driver.doctor.machine import check_cpus, check_disks, check_shared_memory
from dopsd.driver.doctor.remote import check_s3
from dopsd.driver.doctor.versions import check_versions
from dopsd.errors import DopsdError, message_line
from dopsd.plan import make_plan
from dopsd.plan.bases import downloads


def examine(config: RunConfig | None) -> list[Finding]:
    """Findings of this machine, and of what ``config`` needs beside it."""
    findings: list[Finding] = []
    plan = None
    if config is not None:
        try:
            plan = make_plan(config)
        except (DopsdError, OSError) as error:
            findings.append(Finding("plan", "do", f"none: {message_line(error)}"))
    looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", lambda: check_versions(config)),
        ("gpus", lambda: check_gpus(config, plan)),
        ("cpus", lambda: [check_cpus()]),
        ("/dev/shm", lambda: [check_shared_memory(config, plan)]),
        ("disks", lambda: check_disks(config, plan, _missing_gb(config))),
    ]
    if config is not None:
        run = config
        looks += [("data", lambda: check_data(run))]
        looks += [("s3", lambda: check_s3(run)), ("models", lambda: check_models(run))]
    for name, look in looks:
        try:
            findings += look()
        except Exception as error:  # whatever a broken machine makes of it
            words = f"cannot be looked at: {type(error).__name__}: {message_line(error)}"
            findings.append(Finding(name, "do", words))
    return findings


def _missing_gb(config: RunConfig | None) -> float:
    """Of the config's models, what is still to be downloaded, as far as it is known."""
    if config is None:
        return 0.0
    known = downloads()
    return sum(known.get(model.name, 0.0) for model in models_of(config) if not is_cached(model))
