"""Whole runs of `dopsd train` on a tiny real base: real Ray, Ray Data, Ray Train, DeepSpeed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image
from safetensors import safe_open

import dopsd
from dopsd.config import RunConfig, load_config
from dopsd.driver.summary import Summary
from dopsd.driver.train import train
from dopsd.driver.verify import verify_run
from dopsd.errors import CheckpointError, ConfigError, DataError, ModelError
from dopsd.files import storage
from dopsd.ray_cluster.ray_private import living_actors
from dopsd.report.page import SECTIONS
from tests import losses
from tests.chaos import harness as chaos
from tests.chaos.harness import Fault
from tests.helpers.browser import open_page
from tests.helpers.events import tracked_images
from tests.helpers.loras import difference, ups
from tests.helpers.ports import listening
from tests.helpers.runs import metrics, run_config, write_images

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

SAMPLES, STEPS = 7, 5
"""7 samples in micro-batches of 2: remainders, and a step that is padded with zero weight."""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    sizes = [(32, 32)] * 5 + [(24, 48)] * 2
    return write_images(tmp_path_factory.mktemp("images"), sizes)


@pytest.fixture(scope="module")
def run(tiny_base, images, tmp_path_factory):
    """Train with some settings changed."""

    def start(
        *,
        resume: Summary | None = None,
        resume_before: int = STEPS,
        change: Callable[[Path], None] = lambda folder: None,
        **sections,
    ) -> Summary:
        folder = tmp_path_factory.mktemp("run")
        if resume is not None:
            cut_off(resume.folder, folder, resume_before)
            change(folder)
        learner = {"workers": 2, "steps": STEPS, "warmup_steps": 2, "schedule": "cosine"}
        sections["learner"] = learner | sections.get("learner", {})
        sections = {"checkpoint": {"every_steps": 2, "keep_last": 3}, **sections}
        config = run_config(tiny_base, folder, images, **sections)
        return from_python(config, resume is not None)

    return start


def from_python(config: RunConfig, resume: bool) -> Summary:
    """Train as a notebook does, in whose one process all runs of this file are: each leaves signals
    and the cluster as it found them, and tells of its steps."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    told: list[dict] = []
    try:
        summary = dopsd.train(config, on_step=told.append, resume=resume, progress=False)
    finally:
        assert [signal.getsignal(number) for number in numbers] == before
        for _ in range(100):
            if not (left := living_actors("TrainController")):
                break
            time.sleep(0.1)
        assert not left, "Ray Train's controller has ended"
    steps, last = [line["step"] for line in told], metrics(summary)[-1]
    assert (told[-1]["step"], told[-1]["loss"]) == (last["step"], last["loss"])
    assert resume == (steps[0] > 0) and steps == sorted(set(steps))
    if not storage.is_remote(summary.folder):  # where what is written is behind
        assert steps == list(range(steps[0], STEPS))
    return summary


LORAS = ("lora.safetensors", "pytorch_lora_weights.safetensors", "teacher/lora.safetensors")


def cut_off(whole: str, folder: Path, step: int) -> None:
    """Make ``folder`` what ``whole`` was before its checkpoint of ``step`` was written."""
    for name, _ in storage.list_files(whole):
        storage.write_bytes(str(folder / name), storage.read_bytes(storage.join(whole, name)))
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) >= step:
            shutil.rmtree(path)
    for name in ("summary.json", "report.html", *LORAS):
        (folder / name).unlink()
    (folder / "teacher").rmdir()


@pytest.fixture(scope="module")
def reference(run) -> Summary:
    """Disaggregated, lag 0, ZeRO-2, two learners."""
    return run()


def test_run_folder_holds_everything(reference):
    folder = Path(reference.folder)
    assert {path.name for path in folder.iterdir()} == {
        ".dopsd.json",
        "config.yaml",
        "metrics.jsonl",
        "ledger.jsonl",
        "checkpoints",
        "summary.json",
        "timeline.jsonl",
        "report.html",
        "tensorboard",
        "lora.safetensors",
        "pytorch_lora_weights.safetensors",
        "teacher",
        "shards",
    }
    assert all((folder / name).stat().st_size for name in LORAS)
    same = (folder / name for name in LORAS[:2])
    assert len({path.read_bytes() for path in same}) == 1, "diffusers finds the student"
    # 2 layers and 2 refiners, each with q, k, v, out and w1, w2, w3.
    assert set(reference.adapted.values()) == {4} and len(reference.adapted) == 7
    lines = metrics(reference)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(line["student_lag"] == line["teacher_lag"] == 0 for line in lines)
    assert [line["lr"] for line in lines[:3]] == pytest.approx([5e-5, 1e-4, 1e-4])
    # 7 samples: two whole steps of 4 would need 8, so the second step of an epoch has 3.
    assert [line["samples"] for line in lines] == [4, 3, 4, 3, 4]
    for key in (
        "loss",
        "grad_norm",
        "samples_per_second",
        "learner_idle_fraction",
        "rollout_seconds",
        "teacher_idle_fraction",
        "learner_peak_memory_mb",
    ):
        assert all(line[key] >= 0 for line in lines), key
    assert lines[0]["loss"] > 0


def test_plan_and_ledger_agree_until_somebody_lies(reference, tmp_path):
    assert verify_run(reference.folder).lines()[0].startswith(f"{STEPS} steps, 18 samples")
    assert verify_run(reference.folder).agrees
    folder = tmp_path / "lied"
    shutil.copytree(reference.folder, folder)
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    other = json.loads(lines[2]) | {"micro_batches": [["0", "0"], ["1"]]}
    (folder / "ledger.jsonl").write_text("\n".join([*lines[:2], json.dumps(other), *lines[4:]]))
    verdict = verify_run(str(folder))
    assert verdict.lost >= 4 and verdict.doubled >= 1 and not verdict.agrees
    assert any(line == "step 2: not in the ledger" for line in verdict.problems)
    damaged = "\n".join([*lines[:2], lines[2][:40], *lines[3:], ""])
    (folder / "ledger.jsonl").write_text(damaged)
    verdict = verify_run(str(folder))
    assert not verdict.agrees and "Remedy: put the lines back from a copy" in verdict.problems[0]
    assert verdict.problems[1].endswith("ledger.jsonl line 3 (no JSON)")
    assert "step 1: not in the ledger" in verdict.problems


SIDE_RECORDS = ("metrics.jsonl", "timeline.jsonl", "ledger.jsonl")


def damage(folder: Path) -> None:
    """What a power cut may leave: NULs in every record beside the checkpoints, and of the newest of
    those a folder in place of a file."""
    for name in SIDE_RECORDS:
        first, _, rest = (folder / name).read_bytes().partition(b"\n")
        (folder / name).write_bytes(first + b"\n" + b"\0" * 100 + b"\n" + rest)
    newest = max((folder / "checkpoints").glob("step-*"))
    (newest / "ema.safetensors").unlink()
    (newest / "ema.safetensors").mkdir()


def test_a_run_resumed_fused_after_damage_with_other_learners_and_stage_agrees(run, reference):
    # From step 2 on the learner encodes, draws and scores itself.
    other = {"source": "fused", "learner": {"workers": 1, "deepspeed": "zero3"}}
    resumed = run(resume=reference, change=damage, **other)
    folder = Path(resumed.folder)
    for name in SIDE_RECORDS:
        (told,) = (line for line in resumed.problems if line.startswith(f"{folder / name}: line 2"))
        assert told.endswith(f"as it was it is {folder / name}.damaged")
        assert b"\0" in (folder / f"{name}.damaged").read_bytes()
    assert any("ema.safetensors" in line for line in resumed.problems), "the older one was taken"
    assert difference(reference.lora, resumed.lora) < 1e-5
    for key in ("step", "loss", "grad_norm"):
        values = [[line[key] for line in metrics(summary)] for summary in (reference, resumed)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), key
    assert verify_run(resumed.folder).agrees and verify_run(resumed.folder).attempts == 2
    with pytest.raises(
        CheckpointError, match=r"step-00000\d: learner.lr: 0.001, the checkpoint has"
    ):
        run(resume=reference, learner={"lr": 1e-3})


ROLES = ("rollout", "encoder", "teacher", "learner", "coordinator")
KILLS = [Fault(2, role, False, 0.0) for role in ROLES]
HANGS = [
    *(Fault(1, "teacher", True, 0.0), Fault(2, "learner", True, 0.0)),
    *(Fault(3, "learner", False, 0.0), Fault(3, "coordinator", False, 0.0)),
]
"""Of workers and learners alone the tests of coordinator and supervisor see the same in seconds."""


@pytest.mark.parametrize("faults", [KILLS, pytest.param(HANGS, marks=pytest.mark.nightly)])
def test_every_role_is_killed_or_hangs_and_nothing_changes(reference, tmp_path, faults):
    words = [
        f"{reference.folder}/config.yaml",
        "learner.restart_backoff_s=0",
        "learner.restarts=10",
        "timeouts.step=30",
        "inference.max_restarts=10",
    ]
    outcome = chaos.run(words, tmp_path / "run", faults, limit=1200.0)
    assert outcome.code == 0, outcome.output
    assert [fault for fault, _ in outcome.struck] == faults, outcome.output
    assert difference(reference.lora, tmp_path / "run" / "lora.safetensors") == 0.0
    verdict = verify_run(str(tmp_path / "run"))
    assert verdict.agrees and verdict.lost == verdict.doubled == 0 and verdict.attempts > 1


def test_the_timeline_holds_every_task_of_every_worker(reference):
    text = (Path(reference.folder) / "timeline.jsonl").read_text()
    spans = [json.loads(line) for line in text.splitlines()]
    tasks = Counter((span["lane"], span["task"]) for span in spans)
    micro_batches = 2 * STEPS
    assert tasks["encoder-0", "encode"] == micro_batches
    assert tasks["rollout-0", "generate"] == tasks["teacher-0", "score"] == micro_batches
    for rank in range(2):
        assert tasks[f"learner-{rank}", "train"] == tasks[f"learner-{rank}", "publish"] == STEPS
    for lane in ("rollout-0", "teacher-0", "learner-0", "learner-1"):
        assert tasks[lane, "start up"] == 1
        own = sorted((s["start"], s["end"]) for s in spans if s["lane"] == lane)
        assert all(a[1] <= b[0] + 0.05 for a, b in zip(own, own[1:])), "one task at a time"
    for step in range(STEPS):
        ends = {
            task: max(s["end"] for s in spans if (s["step"], s["task"]) == (step, task))
            for task in ("generate", "score", "train", "publish")
        }
        assert list(ends.values()) == sorted(ends.values()), "lag 0: one stage after the other"


def test_lora_metadata_says_where_it_comes_from(reference, tiny_base):
    with safe_open(reference.lora, framework="pt") as file:
        metadata = file.metadata()
    manifest = json.loads((Path(reference.folder) / "shards" / "manifest.json").read_text())
    assert metadata["dopsd.base"] == str(tiny_base)
    assert metadata["dopsd.data"] == manifest["fingerprint"]
    assert "dopsd K=4 weighting=x0 teacher=ema ema=0.9" in metadata["dopsd.recipe"]


def test_training_moves_both_adapters(reference):
    student, teacher = ups(reference.lora), ups(Path(reference.folder) / "teacher/lora.safetensors")
    assert min(student.values()) > 0
    assert 0 < max(teacher.values()) < max(student.values())


def test_a_run_at_lag_two_on_s3_is_bitwise_the_one_that_goes_on_here(run, reference, bucket):
    """Nor do workers change a bit: a shared pool there; here, after a restart, two of their own
    for roll-outs."""
    other = run(
        max_policy_lag=2,
        learner={"workers": 1},
        run={"folder": f"{bucket}/runs/one"},
        inference={"shared": True},
        debug={"dump_trajectories": 1},
        preview={"samples": 1, "every": 2, "prompts": ["a red cat", "a blue mat"]},
    )
    # From step 2 on, with versions 0 to 2, which the checkpoint has to hold.
    resumed = run(
        max_policy_lag=2,
        learner={"workers": 1},
        rollout={"workers": 2},
        resume=other,
        resume_before=4,
    )
    assert difference(resumed.lora, other.lora) == 0.0, "also when own prompts are drawn"
    assert difference(reference.lora, other.lora) > 0.0, "stale policies train otherwise"
    for summary in (other, resumed):
        assert [line["student_lag"] for line in metrics(summary)] == [0, 1, 2, 2, 2]
    history = json.loads(storage.read_bytes(f"{other.folder}/preview/history.json"))
    assert [row["version"] for row in history["rows"]] == [0, 2, 4, STEPS]
    drawn = [(row["version"], row["prompt"]) for row in history["pictures"]]
    assert drawn == [(version, prompt) for version in (0, 2, 4, STEPS) for prompt in (0, 1)]
    events = [name for name, _ in storage.list_files(other.folder) if "/events." in name]
    images = [tracked_images(storage.read_bytes(f"{other.folder}/{name}")) for name in events]
    tracked = [(tag, step) for found in images for tag, steps in found.items() for step in steps]
    wanted = [(f"prompts/{n:02d}", step) for n in (0, 1) for step in (0, 2, 4, STEPS)]
    assert sorted(tracked) == wanted, "each once"
    timeline = storage.read_bytes(f"{other.folder}/timeline.jsonl").splitlines()
    spans = [json.loads(line) for line in timeline]
    early = sum(map(len, images[0].values()))
    assert early == sum(span["task"] == "draw" for span in spans) > 0, "some while it trained"
    lines = storage.read_bytes(f"{other.folder}/metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    for name in (
        "config.yaml",
        "summary.json",
        "shards/manifest.json",
        "debug/trajectories/step000000-mb000.safetensors",
        "debug/weights/v000000.teacher.safetensors",
        "preview/weights/v000004.teacher.safetensors",
        "preview/trajectories/v000005-s00.safetensors",
        "timeline.jsonl",
        "report.html",
        "ledger.jsonl",
        f"checkpoints/step-{STEPS:06d}/checkpoint.json",
    ):
        assert storage.exists(f"{other.folder}/{name}"), name


def test_an_existing_run_is_not_touched(run, reference):
    before = Path(reference.lora).read_bytes()
    with pytest.raises(ConfigError, match=r"run.folder: .* holds a run already; allowed: another"):
        run(run={"folder": reference.folder})
    assert Path(reference.lora).read_bytes() == before


def test_shards_of_another_source_are_refused_by_name(run, reference, tmp_path):
    shards = str(Path(reference.folder) / "shards")
    with pytest.raises(DataError, match=r"data.source: .*, but .* was prepared from .*images"):
        run(data={"source": str(tmp_path), "shards": shards})


def test_a_target_that_matches_nothing_is_refused_before_the_start(run):
    with pytest.raises(ModelError, match=r"^lora.targets: to_nowhere match no linear module"):
        run(lora={"targets": ["to_nowhere"]})


@pytest.mark.parametrize("steps", [6, pytest.param(80, marks=pytest.mark.nightly)])
def test_the_demo(ray_cluster, tmp_path, steps):
    """configs/shapes.yaml on the shipped base: source rendered, trained, drawn; the losses are
    those of tests/assets/losses/shapes.json. Meanwhile nothing listens beyond this machine."""
    folder = tmp_path / "run"
    settings = [f"run.folder={folder}", f"learner.steps={steps}", "preview.samples=2"]
    settings.append("preview.prompts=['a red [V] square on teal']")
    phases: list[str] = []
    ports: dict[str, str] = {}

    def show(phase: str, status: dict) -> None:
        phases.append(phase)
        if phase == "train" and not ports:
            ports.update(listening(psutil.Process()))

    summary = train(load_config("shapes", settings), show)
    assert {"gcs_server", "raylet"} <= set(ports.values()) and len(ports) > 10
    assert {port.rpartition(":")[0] for port in ports} <= {"127.0.0.1", "::1"}, ports
    assert list(dict.fromkeys(phases)) == ["prepare", "preflight", "start", "train", "preview"]
    assert summary.problems == [] and summary.steps == steps
    losses.compare([line["loss"] for line in metrics(summary)])
    assert 0 < summary.seconds_to_first_step < summary.seconds
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    assert manifest["source"] == "shapes:bars count=12 seed=0" and manifest["samples"] == 12
    sheet = Image.open(summary.sheet)
    assert sheet.width >= 4 * 192, "target, base, student and teacher side by side"
    assert max(ups(summary.lora).values()) > 0
    dom, console = open_page(Path(summary.page))
    assert console == []
    for title, _ in SECTIONS:
        assert f"<h2>{title}</h2>" in dom
    for part in (
        "rollout-0",
        "learner-1",
        f"after {steps} steps",
        "32x32",
        "a red [V] square",
        "Quarantined: none",
    ):
        assert part in dom, part
    assert dom.count('class="nothing"') == 1, "every section but Steps kept has something to show"
    assert "dopsd evaluate" in dom.partition("<h2>Steps kept</h2>")[2].partition("<h2>")[0]
