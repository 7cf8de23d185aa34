"""Trackers: what TensorBoard reads back, refusals, and failures that stop nothing."""

from __future__ import annotations

import math
import sys
import threading
import time
import types
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from dopsd.cli.main import main
from dopsd.data.pictures.images import encode_png
from dopsd.files import storage
from dopsd.run_folder import trackers
from dopsd.run_folder.files import TENSORBOARD
from dopsd.run_folder.log import RunLog
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.tracked_pictures import StoredPicture, TrackedPicture
from dopsd.run_folder.trackers import TrackerThread, grouped, open_trackers
from tests.helpers.events import events, tracked_images
from tests.helpers.tiny import make_config


def scalars(payload: bytes) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in events(payload)
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def picture(version: int, number: int, prompt: str) -> TrackedPicture:
    return TrackedPicture(version, number, prompt, encode_png(Image.new("RGB", (6, 4), "teal")))


PICTURES = [picture(v, n, p) for v in (0, 3) for n, p in enumerate(["a red cat", "a mat"])]


@pytest.mark.parametrize("remote", [False, True], ids=["local", "s3"])
def test_tensorboard_reads_back_what_the_run_log_was_told(remote, tmp_path, request):
    bucket = request.getfixturevalue("bucket") if remote else None
    folder = f"{bucket}/tracked" if bucket else str(tmp_path)
    config = make_config("base", run={"folder": folder})
    # Refused in a config by now; what is sent out must hold none whatever a config holds.
    data = config.data.model_copy(update={"source": "s3://key:secret@bucket/images"})
    config = config.model_copy(update={"data": data})
    log = RunLog(folder, [TrackerThread("tensorboard", lambda: trackers.TensorBoard(config))])
    for step in range(3):
        metrics = {"loss": 0.5 / (step + 1), "rollout_busy_seconds": step + 1.0}
        log.step(step, metrics, {"rollout": 1})
    log.close()
    assert log.notices == []
    (name,) = (name for name, _ in storage.list_files(folder) if name.startswith("tensorboard/"))
    payload = storage.read_bytes(storage.join(folder, name))
    values = scalars(payload)
    assert [values["loss", step] for step in range(3)] == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert values["rollout/seconds", 2] == 1.0
    assert not any(tag.startswith("step") for tag, _ in values)
    assert b"secret" not in payload and b"s3://***@bucket" in payload


def test_pictures_drawn_afterwards_are_in_tensorboard_beside_the_metrics(tmp_path):
    config = make_config("base", run={"folder": str(tmp_path)})
    trackers.TensorBoard(config).close()
    config.trackers = ["tensorboard", "mlflow"]  # which takes none
    time.sleep(1.1)  # the names of event files hold seconds
    assert trackers.track_pictures(config, PICTURES) == []
    first, second = sorted((tmp_path / TENSORBOARD).iterdir())
    assert tracked_images(first.read_bytes()) == {}
    assert tracked_images(second.read_bytes()) == {"prompts/00": [0, 3], "prompts/01": [0, 3]}
    assert b"a red cat" in second.read_bytes()


def test_a_tracker_that_cannot_take_pictures_is_told_and_raises_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config("base", run={"folder": str(tmp_path)})
    config.trackers = ["wandb"]
    (problem,) = trackers.track_pictures(config, PICTURES)
    assert problem.startswith("trackers: wandb failed (ModuleNotFoundError")


def test_metrics_are_grouped_by_role():
    metrics = {"step": 3, "loss": 1, "learner_idle_fraction": 0.5, "queue_ready": 2, "note": "x"}
    assert grouped(metrics) == {"loss": 1.0, "learner/idle_fraction": 0.5, "queue/ready": 2.0}


def test_a_tracker_that_is_not_installed_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert main(["train", "configs/shapes.yaml", "trackers=[wandb]"]) == 1
    assert capsys.readouterr().err == (
        "dopsd: trackers: wandb is not installed; allowed: `pip install wandb`, or trackers "
        "without wandb\n"
    )


def test_an_unknown_tracker_is_refused_in_one_line(capsys):
    assert main(["train", "configs/shapes.yaml", "trackers=[comet]"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dopsd: trackers.0: 'comet', allowed: 'tensorboard', 'wandb'")


class Broken:
    def __init__(self, fail_at: int) -> None:
        self.fail_at, self.steps = fail_at, []

    def step(self, step, values):
        if step >= self.fail_at:
            raise ConnectionError("s3://me:secret@host is gone")
        self.steps.append(step)

    def close(self):
        raise AssertionError("a tracker that was given up is not closed")


def test_a_tracker_that_fails_is_announced_once_and_the_run_goes_on(tmp_path):
    broken = Broken(fail_at=2)
    log = RunLog(str(tmp_path), [TrackerThread("wandb", lambda: broken)])
    for step in range(5):
        log.step(step, {"loss": 1.0}, {})
        time.sleep(0.05)
    log.close()
    assert broken.steps == [0, 1]
    assert log.notices == [
        "trackers: wandb failed (ConnectionError: s3://***@host is gone); it gets no more metrics"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_tracker_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.2)
    asleep = threading.Event()

    class Hanging:
        def __init__(self):
            asleep.wait(30)

    log = RunLog(str(tmp_path), [TrackerThread("mlflow", Hanging)])
    began = time.monotonic()
    for step in range(trackers._WAITING + 5):
        log.step(step, {"loss": math.nan}, {})
    log.close()
    asleep.set()
    assert time.monotonic() - began < 10
    assert log.notices == ["trackers: mlflow is 1000 steps behind; it gets no more metrics"]


def test_wandb_is_told_metrics_and_neither_code_nor_command_line(tmp_path, monkeypatch):
    told = {}

    class Run:
        id = "abc123"

        def log(self, values, step=None):
            told[step] = values

        def define_metric(self, name, step_metric):
            told[name] = step_metric

        def finish(self):
            told["finished"] = True

    fake = types.ModuleType("wandb")
    fake.Settings = lambda **settings: settings
    fake.init = lambda **arguments: told.update(arguments) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config("base", run={"folder": str(tmp_path), "name": "cat"})
    tracker = trackers.WandB(config)
    fake.Image = lambda pixels, caption: (pixels.shape, caption)
    tracker.step(4, {"loss": 0.5})
    # Pictures that come while it trains go with the next steps, a version with each of them: W&B
    # counts whatever it is sent without a step as one.
    tracker.pictures(PICTURES[:1]), tracker.pictures(PICTURES[1:])
    assert None not in told
    tracker.step(5, {"loss": 0.4}), tracker.step(6, {"loss": 0.3}), tracker.step(7, {"loss": 0.2})
    shown = [((4, 6, 3), "a red cat"), ((4, 6, 3), "a mat")]
    for step, version, loss in ((5, 0, 0.4), (6, 3, 0.3)):
        prompts = {f"prompts/{number:02d}": picture for number, picture in enumerate(shown)}
        assert told[step] == {"loss": loss, "prompts/after_steps": version, **prompts}
    tracker.close()
    assert "id" not in told, "W&B names its runs itself"
    assert told["name"] == "cat" and told[4] == {"loss": 0.5} and told["finished"]
    assert told[7] == {"loss": 0.2} and None not in told
    assert told["config"]["learner"]["lr"] == config.learner.lr
    assert told["settings"]["save_code"] is False and told["settings"]["disable_git"] is True
    # What is drawn afterwards goes to the same of its runs, with steps of its own.
    config.trackers = ["wandb"]
    assert trackers.track_pictures(config, PICTURES[:1]) == []
    assert (told["id"], told["resume"]) == ("abc123", "allow")
    assert told["prompts/*"] == "prompts/after_steps"
    assert told[None] == {"prompts/after_steps": 0, "prompts/00": ((4, 6, 3), "a red cat")}


class FakeRun:
    """Of W&B: what it was sent, by step."""

    id = "abc123"

    def __init__(self) -> None:
        self.logged: list[tuple[int | None, list]] = []

    def log(self, values, step=None):
        names = sorted(name for name in values if name.startswith("prompts/0"))
        self.logged.append((step, [values.get("prompts/after_steps"), *names]))

    def define_metric(self, name, step_metric): ...

    def finish(self): ...


def stored(tmp_path, *drawn: tuple[int, int]) -> list[StoredPicture]:
    """Files beside the run folder, which is claimed meanwhile; of the last prompt none is there."""
    folder = tmp_path.with_name(f"{tmp_path.name}-pictures")
    folder.mkdir(exist_ok=True)
    found = []
    for version, number in drawn:
        path = folder / f"{version}-{number}.png"
        if number < 9 and not path.exists():  # else a tracker may be reading it
            path.write_bytes(PICTURES[0].png)
        found.append(StoredPicture(version, number, "a cat", str(path)))
    return found


def test_wandb_has_each_picture_once_after_resumes_and_rewinds(tmp_path, monkeypatch):
    fake, run = types.ModuleType("wandb"), FakeRun()
    fake.Settings, fake.init = (lambda **settings: settings), (lambda **arguments: run)
    fake.Image = lambda pixels, caption: pixels.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config("base", run={"folder": str(tmp_path), "name": "cat"})
    thread = TrackerThread("wandb", lambda: trackers.WandB(config))
    owned(str(tmp_path)).claim("metrics.jsonl")  # as a run that begins does
    log = RunLog(str(tmp_path), [thread])
    log.rewind(3)  # resumed: a new run of W&B's, which gets what there is
    log.kept_pictures(stored(tmp_path, (3, 0), (0, 0), (0, 1), (0, 9)))
    log.step(3, {"loss": 1.0}, {})
    log.picture(picture(4, 0, "a cat"))
    log.step(4, {"loss": 1.0}, {})
    log.picture(picture(5, 0, "a cat"))  # waits, and is gone
    log.rewind(4)  # its learners are new ones
    log.kept_pictures(stored(tmp_path, (0, 0), (0, 1), (3, 0), (4, 0)))
    log.step(4, {"loss": 1.0}, {})
    log.picture(picture(4, 0, "a cat"))
    log.picture(picture(5, 0, "drawn anew"))
    log.step(5, {"loss": 1.0}, {})
    log.step(6, {"loss": 1.0}, {})
    log.close()
    assert log.notices == []
    first, second = "prompts/00", "prompts/01"
    shown = [(step, entry) for step, entry in run.logged if entry[0] is not None]
    assert shown == [(0, [0, first, second]), (3, [3, first]), (4, [4, first]), (5, [5, first])]
    assert [step for step, _ in run.logged] == [0, 3, 3, 4, 5, 6]


def test_tensorboard_gets_again_what_it_forgets_at_a_rewind(tmp_path):
    config = make_config("base", run={"folder": str(tmp_path)})
    log = RunLog(
        str(tmp_path), [TrackerThread("tensorboard", lambda: trackers.TensorBoard(config))]
    )
    for version in (0, 2):
        log.picture(picture(version, 0, "a cat"))
    time.sleep(1.1)  # the names of event files hold seconds
    log.rewind(2)
    log.kept_pictures(stored(tmp_path, (0, 0), (2, 0)))
    log.close()
    files = sorted((tmp_path / TENSORBOARD).iterdir())
    assert [tracked_images(file.read_bytes()) for file in files[-1:]] == [{"prompts/00": [2]}]


def test_mlflow_is_told_every_key_of_the_config(tmp_path, monkeypatch):
    told = {}
    fake = types.ModuleType("mlflow")
    fake.start_run = lambda **arguments: None
    fake.log_params = told.update
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path))
    config = make_config("base", run={"folder": str(tmp_path)}, max_policy_lag=3)
    trackers.MLflow(config)
    assert told["learner.lr"] == config.learner.lr
    assert (told["source"], told["max_policy_lag"]) == (config.source, 3)
    assert {"device", "trackers"} <= told.keys()


def test_rays_own_metrics_hold_the_roles(ray_cluster, tmp_path):
    import ray

    config = make_config("base", run={"folder": str(tmp_path)})
    config.trackers = []
    log = RunLog(str(tmp_path), open_trackers(config))
    log.step(7, {"loss": 0.25, "student_lag": 1, "queue_ready": 3, "rollout_seconds": 0.0}, {})
    log.step(8, {"loss": 0.25, "rollout_busy_seconds": 0.0}, {"rollout": 1})
    node = ray.nodes()[0]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    # Runs of other tests left gauges of the same names: it is the values that must arrive.
    wanted = (
        ("ray_dopsd_step", " 8.0"),
        ("ray_dopsd_loss", " 0.25"),
        ('stage="ready"', " 3.0"),
        ('role="rollout"', ""),
        ("ray_dopsd_idle_fraction", ""),
        ("ray_dopsd_lag", ""),
    )
    missing, deadline = list(wanted), time.monotonic() + 60
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        lines = urlopen(address).read().decode().splitlines()
        missing = [
            (part, end)
            for part, end in wanted
            if not any(part in line and line.endswith(end) for line in lines)
        ]
    log.close()
    assert log.notices == [] and missing == []


def test_the_event_file_is_named_in_the_run_folder(tmp_path):
    config = make_config("base", run={"folder": str(tmp_path)})
    trackers.TensorBoard(config).close()
    assert [p.parent.name for p in Path(tmp_path).rglob("events.*")] == [TENSORBOARD]
