"""The rows of a benchmark, one after the other, each a command of its own that is metered."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dopsd import __version__, cpus
from dopsd.config import RunConfig, dump_config
from dopsd.errors import DeadlineError, ResourceError
from dopsd.experiments.benchmark.meter import Meter
from dopsd.experiments.benchmark.sizes import SIZES, Size, base_of, config_of
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder
from dopsd.run_folder.files import METRICS_FILE
from dopsd.run_folder.log import read_metric_lines

PLAIN = "plain"
ROWS: tuple[dict[str, Any], ...] = (
    {"name": PLAIN, "title": "plain loop", "keys": {}},
    {"name": "fused", "title": "fused", "keys": {"source": "fused", "max_policy_lag": 0}},
    {"name": "lag0", "title": "disaggregated, lag 0", "keys": {"max_policy_lag": 0}},
    {"name": "lag1", "title": "disaggregated, lag 1", "keys": {"max_policy_lag": 1}},
)
RESULTS = "benchmark.json"
_ROLES = ("plain", "encoder", "rollout", "teacher", "learner")
_POLL = 0.1
_STEP_SECONDS = 600.0
"""For a step, and for a start."""


@dataclass(frozen=True)
class Measured:
    """A row. Seconds are of the steps after the warm-up."""

    name: str
    title: str
    samples: int
    cpu_seconds_per_sample: float
    seconds_per_sample: float
    peak_mb: float
    """PSS of all processes together, in MB."""
    peak_mb_by_role: dict[str, float]
    """Of the largest process of each, in MB."""
    busy: dict[str, float]
    """Share of the time in which a role's workers compute."""
    publish_seconds: float | None
    """A step's, in the learner's way; the median."""
    first_losses: list[float]

    def __str__(self) -> str:
        return f"{self.cpu_seconds_per_sample:.3f} CPU-s a sample"


def benchmark(
    name: str, folder: str, tell: Callable[[str], None], again: bool = False
) -> list[Measured]:
    """Measure every row of a size, in ``folder``, which keeps logs, runs and the result.

    Raises ConfigError for a folder of somebody else's, ResourceError with the end of its log for a
    row that fails, and DeadlineError for one that stands still. Rows that this version of dopsd has
    measured there with the same settings, in whichever call, are kept (``again``: measured anew).
    """
    size, path = SIZES[name], Path(folder).absolute()
    own = OwnedFolder(str(path), "benchmark", "--out")
    made = [RESULTS, "base/", "shards/"]
    made += [f"{row['name']}{end}" for row in ROWS for end in ("/", ".yaml", ".log", ".json")]
    own.check(*made, "prepare.yaml", "prepare.log")
    own.claim(*made, "prepare.yaml", "prepare.log")
    base = base_of(size, path / "base")
    configs = {row["name"]: config_of(size, base, str(path), row) for row in ROWS}
    kept = {} if again else measured_rows(own, size, configs)
    if len(kept) < len(ROWS):
        tell("preparing: shards and their contexts")
        file = _written(configs["fused"], path / "prepare.yaml")
        words = ["-m", "dopsd", "prepare", file, "--cache-contexts"]
        _run_to_end(words, path / "prepare.log")
    found = []
    for row in ROWS:
        if row["name"] in kept:
            found.append(kept[row["name"]])
            tell(f"{row['title']}: measured before, {found[-1]}")
            continue
        tell(f"{row['title']}: {size.steps} steps of {size.batch} samples")
        found.append(_measure(row, configs[row["name"]], size, path))
        keep_row(own, size, configs[row["name"]], found[-1])
        tell(f"{row['title']}: {found[-1]}")
    record = {"size": name, "dopsd": __version__, "rows": [asdict(each) for each in found]}
    own.write(RESULTS, json.dumps(record, indent=1).encode())
    return found


def keep_row(own: OwnedFolder, size: Size, config: RunConfig, row: Measured) -> None:
    """Write ``NAME.json``: what was measured, and with which settings."""
    record = {"settings": _settings(size, config), "measured": asdict(row)}
    own.write(f"{row.name}.json", json.dumps(record, indent=1).encode())


def measured_rows(
    own: OwnedFolder, size: Size, configs: Mapping[str, RunConfig]
) -> dict[str, Measured]:
    """By name those that ``keep_row`` wrote and whose settings are today's."""
    found = {}
    for name, config in configs.items():
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            record = json.loads(storage.read_bytes(own.file(f"{name}.json")))
            if record["settings"] == _settings(size, config):
                found[name] = Measured(**record["measured"])
    return found


def _settings(size: Size, config: RunConfig) -> dict[str, Any]:
    """Upon which the figures of a row depend."""
    return {
        "dopsd": __version__,
        "size": asdict(size),
        "config": dump_config(config),
        "cpus": cpus.usable().usable,
    }


def _measure(row: dict[str, Any], config: RunConfig, size: Size, path: Path) -> Measured:
    file, log = _written(config, path / f"{row['name']}.yaml"), path / f"{row['name']}.log"
    words = ["-m", "dopsd", "train", file, "run.overwrite=true"]
    if row["name"] == PLAIN:
        words = ["-m", "dopsd.experiments.benchmark.plain", file]
    at: dict[int, tuple[float, float]] = {}
    started = time.time()
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=out)
        try:
            with Meter(process.pid) as meter:
                last, moved = 0, time.monotonic()
                while process.poll() is None:
                    steps = _steps(config, started)
                    if steps > last:
                        last, moved = steps, time.monotonic()
                        at[steps] = (meter.cpu_seconds(), moved)
                    if time.monotonic() - moved > _STEP_SECONDS:
                        raise DeadlineError(
                            f"benchmark: {row['title']} has made no step for {_STEP_SECONDS:g} s, "
                            f"after step {last} of {size.steps}; its log: {log}"
                        )
                    time.sleep(_POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    _check(process.returncode, log)
    begin = min(step for step in at if step >= size.warm_up)
    end = max(at)
    lines = read_metric_lines(config.run.folder)
    warm = lines[begin:end]
    samples = sum(int(line["samples"]) for line in warm)
    return Measured(
        row["name"],
        row["title"],
        samples,
        (at[end][0] - at[begin][0]) / samples,
        (at[end][1] - at[begin][1]) / samples,
        meter.peak_mb,
        _peaks(lines),
        _busy(warm),
        _median(warm, "learner_publish_seconds"),
        [float(line["loss"]) for line in lines[:3]],
    )


def _steps(config: RunConfig, since: float) -> int:
    """That the row has finished. Before it began there may be an earlier benchmark's."""
    file = Path(config.run.folder) / METRICS_FILE
    with suppress(FileNotFoundError):
        if file.stat().st_mtime >= since:
            return len(read_metric_lines(config.run.folder))
    return 0


def _peaks(lines: list[dict[str, Any]]) -> dict[str, float]:
    peaks = {
        role: max((float(line.get(f"{role}_peak_memory_mb", 0.0)) for line in lines), default=0.0)
        for role in _ROLES
    }
    return {role: peak for role, peak in peaks.items() if peak > 0}


def _busy(lines: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for role in _ROLES:
        idle = _median(lines, f"{role}_idle_fraction")
        if idle is not None:
            found[role] = 1.0 - idle
    return found


def _median(lines: list[dict[str, Any]], key: str) -> float | None:
    values = [float(line[key]) for line in lines if key in line]
    return median(values) if values else None


def _written(config: RunConfig, path: Path) -> str:
    path.write_text(dump_config(config), encoding="utf-8")
    return str(path)


def _run_to_end(words: list[str], log: Path) -> None:
    with log.open("wb") as out:
        code = subprocess.run([sys.executable, *words], stdout=out, stderr=out, check=False)
    _check(code.returncode, log)


def _check(code: int, log: Path) -> None:
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ResourceError(f"benchmark: exit code {code}, see {log}: {' '.join(last)}")
