"""The commands as functions: what they take, what they raise, and what they leave behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.cloudpickle as cloudpickle
from PIL import Image

import dopsd
from dopsd.api.call import as_config, call
from dopsd.config import load_config
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.each_step import EachStep
from dopsd.errors import ConfigError, InterruptedRun
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "python.md"


def run_alone(code: str) -> str:
    """What another interpreter prints."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'diffusers', 'pydantic'} & sys.modules.keys()"
    assert run_alone(f"import sys, dopsd; print({heavy} or dopsd.train.__name__)") == "train"


@pytest.mark.parametrize("first", ["", "import dopsd.plan.cards;", "import dopsd.api;"])
def test_a_package_is_called_whoever_imported_it(first: str) -> None:
    call = "dopsd.plan('shapes').record()['run'], dopsd.plan.make_plan.__name__"
    assert run_alone(f"import dopsd; {first} print({call})") == "shapes-bars make_plan"
    assert run_alone(f"{first}import dopsd; print(callable(dopsd.library))") == "True"


def test_the_package_travels_as_any_other() -> None:
    for module in (dopsd, dopsd.plan, dopsd.library):
        assert pickle.loads(cloudpickle.dumps(module)) is module


def test_there_is_nothing_else() -> None:
    assert {"train", "prepare", "generate", "evaluate", "plan", "library"} <= set(dir(dopsd))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dopsd.trian


def test_a_config_is_a_name_a_file_sections_or_itself(tmp_path: Path) -> None:
    overrides = ["learner.steps=7"]
    whole = load_config("shapes", overrides)
    file = tmp_path / "own.yaml"
    file.write_bytes((ROOT / "configs" / "shapes.yaml").read_bytes())
    for given in ("shapes", file, str(file), load_config("shapes")):
        assert as_config(given, overrides) == whole
    assert as_config(load_config("shapes").model_dump(mode="json"), overrides) == whole
    assert as_config({"data": {"source": tmp_path}}).data.source == str(tmp_path)
    own = as_config(whole)
    own.learner.steps = 8
    assert whole.learner.steps == 7, "the caller's own is left as it is"


@pytest.mark.parametrize(
    ("called", "line"),
    [
        (lambda: dopsd.train("no.yaml"), "config no.yaml: no such file"),
        (lambda: dopsd.train({"learner": {"lrr": 1}}), "learner.lrr: unknown key"),
        (lambda: dopsd.prepare("shapes", overrides=["x"]), "override 'x': allowed"),
        (lambda: dopsd.plan("shapes", card="gtx"), "--card: 'gtx', allowed"),
        (lambda: dopsd.plan("shapes", gpus=0), "gpus: 0, allowed: at least 1"),
        (lambda: dopsd.plan("shapes", efficiency=2), "efficiency: 2, allowed"),
        (lambda: dopsd.library({"data": []}), "data: "),
        (lambda: dopsd.generate("x", family="sdxl"), "family: 'sdxl', allowed"),
        (lambda: dopsd.evaluate("out", base="x/y"), "prompts: missing, allowed"),
    ],
)
def test_a_mistake_is_an_error_of_dopsd(called: Any, line: str) -> None:
    with pytest.raises(ConfigError) as told:
        called()
    assert str(told.value).startswith(line), told.value


def test_signals_are_those_of_before_and_an_interrupt_is_an_error_of_dopsd() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for _ in range(2):
        told = pytest.raises(InterruptedRun, match=r"^interrupted by SIGTERM; the way on$")
        with told, call(progress=False, way_on="the way on"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def status(step: int) -> RunStatus:
    return RunStatus(step, 9, {"step": step - 1, "loss": float(step)} if step else {})


def test_each_step_is_told_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk = [{"step": step, "loss": float(step + 1)} for step in range(9)]
    monkeypatch.setattr("dopsd.driver.each_step.read_metric_lines", lambda folder: on_disk)
    told: list[dict[str, Any]] = []
    events: list[Any] = []
    show = EachStep(lambda phase, event: events.append(event), told.append, "folder", None)
    for event in ["words", *map(status, (2, 2, 3, 6, 4, 6, 7))]:  # 2: resumed; 4: a restart
        show("train", event)
    assert [line["step"] for line in told] == [2, 3, 4, 5, 6]
    assert [line["loss"] for line in told] == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert len(events) == 8
    show.finish()
    assert [line["step"] for line in told] == list(range(2, 9))


def test_a_step_whose_line_is_behind_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the count of steps is ahead of the newest metrics, and at the first look."""
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr("dopsd.driver.each_step.read_metric_lines", lambda folder: lines)
    told: list[dict[str, Any]] = []
    show = EachStep(lambda phase, event: None, told.append, "folder")
    show("train", RunStatus(1, 9, {}))
    show("train", status(3))
    assert told == []
    lines += [{"step": step, "loss": 0.5} for step in range(3)]
    show("train", RunStatus(5, 9, {"step": 3, "loss": 0.5}))
    assert [line["step"] for line in told] == [0, 1, 2, 3]
    lines += [{"step": step, "loss": 0.5} for step in range(3, 9)]
    show.finish()
    show.finish()
    assert [line["step"] for line in told] == list(range(9))


def test_steps_that_cannot_be_read_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopsd.driver.each_step.read_metric_lines", lambda folder: 1 / 0)
    told: list[dict[str, Any]] = []
    show = EachStep(lambda phase, event: None, told.append, "folder")
    show("train", status(0))
    show("train", status(1))  # the newest step alone needs no reading
    assert [line["step"] for line in told] == [0]
    monkeypatch.setattr("dopsd.driver.each_step.read_metric_lines", missing)
    show("train", status(4))
    assert [line["step"] for line in told] == [0]


def missing(folder: str) -> list[dict[str, Any]]:
    raise FileNotFoundError(folder)


def test_pictures_are_drawn_twice_alike(tiny_base: Path) -> None:
    size: dict[str, Any] = {"width": 16, "height": 32, "steps": 1, "base": str(tiny_base)}
    one, two = dopsd.generate(["a cat", "a mat"], **size), dopsd.generate("a cat", **size)
    assert [image.size for image in one] == [(16, 32)] * 2
    assert one[0].tobytes() == two[0].tobytes() != one[1].tobytes()


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its examples, but for the training itself and a LoRA to draw with, which this leaves out."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def trained(config: Any, show: Any, **options: Any) -> Any:
        asked.append(config)
        show("train", status(0))
        show("train", status(1))
        return SimpleNamespace(folder=None)

    monkeypatch.setattr("dopsd.driver.train.train", trained)
    names: dict[str, Any] = {}
    for code in blocks(PAGE, "python"):
        exec(code, names)
    assert names["losses"] == [1.0] and asked[0].learner.steps == 20
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.size == (32, 32)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].endswith("GiB") and printed[-1] == "learner.lr: 'fast', allowed: a number"


def test_the_page_has_every_function() -> None:
    text = PAGE.read_text()
    assert all(f"| `{name}(" in text for name in dopsd.api.__all__)
