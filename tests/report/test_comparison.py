"""Runs side by side: pictures by prompt, curves in one chart, what the configs differ in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.config import dump_config, load_config
from dopsd.report.comparison import MOST, differences, rows, run_names
from dopsd.report.run_files import read_run_files
from dopsd.run_folder.preview_files import HISTORY
from tests.helpers.browser import ask_page
from tests.report.test_page import HOSTILE, WIDTHS, Tags, folder

__all__ = ["folder"]


@pytest.fixture
def other(folder: Path) -> Path:
    """A second run: another rate, more steps, a prompt of its own beside the shared one."""
    run = folder.parent / "other"
    shutil.copytree(folder, run)
    words = [f"run.folder={run}", f"run.name={json.dumps(HOSTILE)}", "learner.steps=9"]
    config = load_config("configs/shapes.yaml", [*words, "learner.lr=2e-3", "lora.rank=4"])
    (run / "config.yaml").write_text(dump_config(config))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    more = [json.dumps(json.loads(lines[-1]) | {"step": step}) for step in (6, 7, 8)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, *more]))
    history = json.loads((run / HISTORY).read_text())
    history["samples"][0]["prompt"] = "of this run alone"
    (run / HISTORY).write_text(json.dumps(history))
    return run


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_runs_side_by_side(width, folder, other, tmp_path):
    out = tmp_path / "page.html"
    for _ in ("new", "in the place of the first"):
        assert main(["report", str(folder), str(other), "--out", str(out)]) == 0
    script = """
      const charts = [...page.querySelectorAll("#curves .chart")];
      return {scroll: page.documentElement.scrollWidth - view.innerWidth,
        loss: charts[0].querySelectorAll("path.line").length,
        names: [...charts[0].querySelectorAll(".key span")].map((e) => e.textContent),
        pictures: [...page.querySelectorAll("#pictures .sample")].map(
          (e) => [...e.querySelectorAll("img")].map((i) => i.alt)),
        keys: [...page.querySelectorAll("#differences tr")].map(
          (e) => [...e.children].map((c) => c.textContent))};
    """
    found, console = ask_page(out.read_text(), width, script)
    assert console == [] and found["scroll"] <= 0
    assert found["loss"] == 2 and found["names"] == ["run", "other"]
    assert found["pictures"] == [["run", "other, step 6"], ["run"], ["other, step 6"]]
    assert found["keys"] == [
        ["key", "run", "other"],
        ["lora.rank", "16", "4"],
        ["learner.steps", "6", "9"],
        ["learner.lr", "0.0005", "0.002"],
    ]


def test_no_text_becomes_markup_and_nothing_is_loaded(folder, other, tmp_path):
    out = tmp_path / "page.html"
    assert main(["report", str(folder), str(other), "--out", str(out)]) == 0
    tags = Tags(out.read_text()).tags
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert all((a.get("src") or "data:").startswith("data:") for t, a in tags if t == "img")


def test_last_pictures_are_matched_by_their_prompt(folder, other):
    runs = {"a": read_run_files(str(folder)), "b": read_run_files(str(other))}
    own, mine, theirs = rows(runs)
    assert [name for name, _ in own.pictures] == ["a", "b, step 6"] and own.prompt == HOSTILE
    assert own.pictures[0][1].size == (128, 64)
    assert (mine.prompt, theirs.prompt) == (HOSTILE, "of this run alone")
    assert differences({"a": runs["a"], "b": runs["a"]}) == []


def test_a_picture_on_the_way_says_so(folder, other):
    history = json.loads((folder / HISTORY).read_text())
    history |= {"pictures": [{"version": 0, "prompt": 0}], "rows": history["rows"][:1]}
    (folder / HISTORY).write_text(json.dumps(history))
    own, mine = rows({"a": read_run_files(str(folder))})
    assert [name for name, _ in own.pictures] == [name for name, _ in mine.pictures]
    assert [name for name, _ in own.pictures] == ["a, step 0"]


def test_names_are_as_long_as_it_takes_to_tell_runs_apart():
    assert run_names(["runs/a", "s3://bucket/b/"]) == ["a", "b"]
    assert run_names(["one/run", "two/run"]) == ["one/run", "two/run"]
    assert run_names(["run", "one/run"]) == ["run", "one/run"]


def test_what_cannot_be_compared_is_one_line(folder, other, tmp_path, capsys):
    taken = tmp_path / "notes.html"
    taken.write_text("mine")
    (tmp_path / "away.html").symlink_to("nowhere")
    many = [f"run-{number}" for number in range(MOST + 1)]
    for words, line in (
        ([folder, other, "--out", taken], f"--out: {taken} is no page of dopsd's; allowed: "),
        ([folder, folder], f"report: {folder} is given twice, allowed: each run once"),
        ([folder, f"{folder}/"], f"report: {folder} is given twice, allowed: each run once"),
        ([folder, other, "--out", tmp_path / "away.html"], f"--out: {tmp_path}/away.html is no"),
        ([folder, tmp_path], f"{tmp_path}: no config.yaml; allowed: the folder of a run"),
        (many, f"report: {MOST + 1} runs, allowed: at most {MOST}"),
        ([folder, other, "--serve"], "--serve: 2 runs, allowed: one"),
        ([folder, "--out", taken], "--out: given with one run, allowed: with several"),
    ):
        assert main(["report", *map(str, words)]) == 1, words
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"dopsd: {line}"), said
    assert taken.read_text() == "mine"
