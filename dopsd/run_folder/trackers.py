"""Where a run's metrics also go: TensorBoard, Weights & Biases, MLflow, Ray's own metrics.

Each tracker lives in a thread of its own, so that a slow or broken one is announced once and
never stops training.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from dopsd.config import RunConfig
from dopsd.config.load import dump_config, shown_values
from dopsd.credentials import redact
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.scratch import temporary_folder
from dopsd.readers import read_json
from dopsd.run_folder.files import TENSORBOARD, WANDB_FILE, RunFolder
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.tracked_pictures import StoredPicture, TrackedPicture, loaded

_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_ROLES = ("encoder", "rollout", "teacher", "learner", "queue")
Entry = tuple[int, dict[str, float] | int | list[TrackedPicture] | tuple[StoredPicture, ...]]
"""A step and its metrics, or the step until which they were sent before; or new pictures, or those
that a rewind kept."""
_WAITING = 1000
"""Steps that a slow tracker may be behind before it is given up."""
_CLOSE_SECONDS = 20.0
_UPLOAD_INTERVAL = 60.0


_AFTER = "prompts/after_steps"


@dataclass(frozen=True)
class WandBRecord:
    """``wandb.json`` of the run folder: which of W&B's runs this one is."""

    id: str


class Tracker(ABC):
    """One destination of metrics. Made, called and closed in one thread."""

    @abstractmethod
    def step(self, step: int, values: dict[str, float]) -> None: ...

    def rewind(self, step: int) -> bool:
        """Forget ``step`` and what follows; False when that cannot be done."""
        return False

    def pictures(self, pictures: Sequence[TrackedPicture]) -> None:  # noqa: B027
        """Take the pictures of own prompts; not every tracker does."""

    def kept(self, pictures: Sequence[StoredPicture]) -> None:  # noqa: B027
        """After a rewind, take those of ``pictures``, which stay, that are not there."""

    def close(self) -> None:  # noqa: B027
        """Send what is left."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise ConfigError(
                f"trackers: {name} is not installed; allowed: `pip install {_MODULES[name]}`, or "
                f"trackers without {name}"
            )


def open_trackers(config: RunConfig) -> list[TrackerThread]:
    """The trackers that ``config`` asks for, and Ray's metrics."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(config),
        "wandb": lambda: WandB(config),
        "mlflow": lambda: MLflow(config),
    }
    asked = {name: makers[name] for name in config.trackers}
    return [
        TrackerThread(name, make) for name, make in (asked | {"Ray metrics": RayMetrics}).items()
    ]


def track_pictures(config: RunConfig, pictures: Sequence[TrackedPicture]) -> list[str]:
    """Send what was drawn after training to the trackers that show pictures. Returns what went
    wrong; nothing is raised for it, and each has a bounded time."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(config, goes_on=True),
        "wandb": lambda: WandB(config, goes_on=True),
    }
    threads = [TrackerThread(name, makers[name]) for name in config.trackers if name in makers]
    for thread in threads:
        thread.pictures(pictures)
        thread.close()
    return [thread.problem for thread in threads if thread.problem]


class TrackerThread:
    """A tracker behind a queue and a thread. ``problem`` is why it was given up, if it was."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self.problem: str | None = None
        self._queue: queue.Queue[Entry | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Queue a step's metrics; never waits."""
        self._put((step, grouped(metrics)))

    def rewind(self, step: int, sent: int) -> None:
        """The run resumes from ``step``, having come to ``sent`` before: no step counts twice."""
        if step or sent >= 0:
            self._put((step, sent))

    def pictures(self, pictures: Sequence[TrackedPicture]) -> None:
        """Queue pictures; never waits."""
        self._put((0, list(pictures)))

    def kept(self, pictures: Sequence[StoredPicture]) -> None:
        """Queue what a rewind kept; never waits."""
        self._put((0, tuple(pictures)))

    def _put(self, entry: Entry | None) -> None:
        if self.problem is None:
            try:
                self._queue.put_nowait(entry)
            except queue.Full:
                self._give_up(f"is {_WAITING} steps behind")

    def close(self) -> None:
        """End the tracker, within a bounded time."""
        self._put(None)
        if self.problem is None:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                self._give_up(f"did not end within {_CLOSE_SECONDS:g} s")

    def _give_up(self, why: str) -> None:
        self.problem = f"trackers: {self.name} {why}; it gets no more metrics"

    def _run(self) -> None:
        try:
            tracker, known = self._make(), -1
            while (entry := self._queue.get()) is not None:
                step, what = entry
                if isinstance(what, list):
                    tracker.pictures(what)
                elif isinstance(what, tuple):
                    tracker.kept(what)
                elif isinstance(what, int):
                    known = -1 if tracker.rewind(step) else max(known, what)
                elif step > known:
                    tracker.step(step, what)
            tracker.close()
        except BaseException as error:  # a tracker may even call sys.exit
            text = " ".join(str(error).split())[:300]
            self._give_up(f"failed ({type(error).__name__}: {redact(text)})")


def grouped(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among ``metrics``, ``rollout_seconds`` as ``rollout/seconds``."""
    values = {}
    for key, value in metrics.items():
        if isinstance(value, int | float) and key != "step":
            role, _, rest = key.partition("_")
            values[f"{role}/{rest}" if role in _ROLES and rest else key] = float(value)
    return values


class TensorBoard(Tracker):
    """An event file under the run folder; a remote folder gets a copy now and then.

    ``goes_on``: a file beside that of the training, which TensorBoard reads as one.
    """

    def __init__(self, config: RunConfig, goes_on: bool = False) -> None:
        from tensorboardX import SummaryWriter

        self._run, self._folder = config.run.folder, storage.join(config.run.folder, TENSORBOARD)
        self._named: set[str] = set()
        """Pictures whose prompt was written."""
        self._purged = math.inf
        """From this step on TensorBoard forgets what the run's event files hold."""
        self._scratch, self._remote = ExitStack(), storage.is_remote(self._folder)
        local = self._folder
        if self._remote:
            local = self._scratch.enter_context(temporary_folder("tensorboard"))
        self._local, self._uploaded = local, time.monotonic()
        self._new_writer = partial(SummaryWriter, local, flush_secs=10)
        self._writer = self._open()
        if not goes_on:
            self._writer.add_text("config", f"```\n{redact(dump_config(config))}```")

    def _open(self, **options: Any) -> Any:
        """A writer, whose event file the run folder's record knows as the run's own."""
        before = storage.names(self._local)
        writer = self._new_writer(**options)
        new = storage.names(self._local) - before
        owned(self._run).adopt(*(f"{TENSORBOARD}/{name}" for name in new))
        return writer

    def step(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        if self._remote and time.monotonic() - self._uploaded > _UPLOAD_INTERVAL:
            self._writer.flush()
            self._upload()

    def pictures(self, pictures: Sequence[TrackedPicture]) -> None:
        for picture in pictures:
            self._writer.add_image(picture.name, picture.pixels, picture.version, dataformats="HWC")
            if picture.name not in self._named:
                self._named.add(picture.name)
                self._writer.add_text(picture.name, picture.prompt)

    def kept(self, pictures: Sequence[StoredPicture]) -> None:
        self.pictures(list(loaded([p for p in pictures if p.version >= self._purged])))
        self._purged = math.inf

    def rewind(self, step: int) -> bool:
        self._writer.close()
        self._writer, self._purged = self._open(purge_step=step), step
        return True

    def close(self) -> None:
        self._writer.close()
        if self._remote:
            self._upload()
        self._scratch.close()

    def _upload(self) -> None:
        self._uploaded = time.monotonic()
        for file in Path(self._local).glob("events.*"):
            storage.write_bytes(storage.join(self._folder, file.name), file.read_bytes())


class WandB(Tracker):
    """A W&B run; key, project and mode come from W&B's own environment variables.

    ``goes_on``: the run that the training sent its metrics to, where the run folder knows it.
    """

    def __init__(self, config: RunConfig, goes_on: bool = False) -> None:
        import wandb

        self._wandb, record = wandb, RunFolder(config.run.folder).file(WANDB_FILE)
        self._pictures: list[TrackedPicture] = []
        """What waits for a step."""
        self._sent: set[tuple[int, int]] = set()
        """Version and prompt of what W&B has: it forgets nothing, and would show it twice."""
        self._stepped = False
        known = goes_on and storage.exists(record)
        same = {"id": read_json(record, WandBRecord).id, "resume": "allow"} if known else {}
        self._scratch, folder = ExitStack(), config.run.folder
        remote = storage.is_remote(folder)
        # Beside older runs' files, which W&B leaves alone: each run of its own has a new folder.
        place = self._scratch.enter_context(temporary_folder("wandb")) if remote else folder
        self._run = wandb.init(
            name=config.run.name,
            config=shown_values(config),
            dir=place,
            **same,
            # Neither code, command line nor console: they may hold what is nobody's business.
            settings=wandb.Settings(
                console="off", quiet=True, save_code=False, disable_git=True, x_disable_meta=True
            ),
        )
        if not known:
            owned(folder).write(WANDB_FILE, json.dumps({"id": self._run.id}).encode())

    def step(self, step: int, values: dict[str, float]) -> None:
        self._stepped = True
        self._run.log({**values, **self._next_pictures()}, step=step)

    def pictures(self, pictures: Sequence[TrackedPicture]) -> None:
        # W&B takes no earlier step again, so pictures have an axis of their own. They wait for a
        # step's metrics: by themselves they would be a step to W&B, and the next one would be lost.
        self._run.define_metric("prompts/*", step_metric=_AFTER)
        waiting = {(picture.version, picture.number) for picture in self._pictures}
        had = self._sent | waiting
        self._pictures += [p for p in pictures if (p.version, p.number) not in had]

    def kept(self, pictures: Sequence[StoredPicture]) -> None:
        new = [p for p in pictures if (p.version, p.number) not in self._sent]
        if self._stepped:
            self.pictures(list(loaded(new)))
            return
        # A run of W&B's own begins where this one resumes: its first steps are free for them.
        for version, group in groupby(sorted(new, key=_version), _version):
            self.pictures(list(loaded(list(group))))
            while self._pictures:
                self._run.log(self._next_pictures(), step=version)

    def rewind(self, step: int) -> bool:
        """Of pictures it forgets what it has not sent."""
        self._pictures = [picture for picture in self._pictures if picture.version <= step]
        return False

    def _next_pictures(self) -> dict[str, Any]:
        """Those of one version that wait, as W&B takes them."""
        if not self._pictures:
            return {}
        version = self._pictures[0].version
        drawn = [picture for picture in self._pictures if picture.version == version]
        self._pictures = [picture for picture in self._pictures if picture.version != version]
        self._sent |= {(picture.version, picture.number) for picture in drawn}
        return {
            _AFTER: version,
            **{p.name: self._wandb.Image(p.pixels, caption=p.prompt) for p in drawn},
        }

    def close(self) -> None:
        while self._pictures:
            self._run.log(self._next_pictures())
        self._run.finish()
        self._scratch.close()


def _version(picture: StoredPicture) -> int:
    return picture.version


class MLflow(Tracker):
    """An MLflow run on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, config: RunConfig) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise RuntimeError("MLFLOW_TRACKING_URI is not set where Ray's workers run")
        self._mlflow = mlflow
        mlflow.start_run(run_name=config.run.name, log_system_metrics=False)
        parameters: dict[str, Any] = {}
        for name, section in shown_values(config).items():
            if isinstance(section, dict):
                parameters |= {f"{name}.{key}": value for key, value in section.items()}
            else:
                parameters[name] = section
        mlflow.log_params(parameters)

    def step(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics({key.replace(" ", "_"): v for key, v in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class RayMetrics(Tracker):
    """Gauges for Ray's dashboard and Prometheus, which sees them as ``ray_dopsd_...``."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        def gauge(name: str, text: str, *tags: str) -> Gauge:
            return Gauge(f"dopsd_{name}", description=text, tag_keys=tags)

        self._plain = {
            "loss": gauge("loss", "Loss of the last step."),
            "step": gauge("step", "Last finished optimizer step."),
            "samples_per_second": gauge("samples_per_second", "Samples trained per second."),
        }
        self._idle = gauge("idle_fraction", "Share of the last step a role was idle.", "role")
        self._busy = gauge("busy_fraction", "Share of the last step a role was busy.", "role")
        self._lag = gauge("lag", "Optimizer steps by which the weights were behind.", "adapter")
        self._queue = gauge("queue", "Micro-batches by where they are.", "stage")

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, gauge in self._plain.items():
            if name in values or name == "step":
                gauge.set(values.get(name, step))
        for key, value in values.items():
            group, _, rest = key.partition("/")
            if rest == "idle_fraction":
                self._idle.set(value, {"role": group})
                self._busy.set(1.0 - value, {"role": group})
            elif group == "queue":
                self._queue.set(value, {"stage": rest})
            elif key.endswith("_lag"):
                self._lag.set(value, {"adapter": key.removesuffix("_lag")})

    def rewind(self, step: int) -> bool:
        return True  # a gauge knows no past
