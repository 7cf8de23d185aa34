"""Pictures that come while a run trains: in its folder and record, in its history, to trackers."""

from __future__ import annotations

import json
import threading

import pytest
from PIL import Image

from dopsd.coordinator.picture_writer import PictureWriter
from dopsd.data.pictures.images import encode_png
from dopsd.errors import LeaseLost, StorageError
from dopsd.files import storage
from dopsd.ownership.ownership import RECORD
from dopsd.report.run_files import read_run_files
from dopsd.run_folder.outputs import owned
from dopsd.run_folder.preview_files import HISTORY, prompt_path
from dopsd.run_folder.prompt_history import (
    drawn_prompts,
    drawn_versions,
    drawn_while_training,
    prompt_facts,
)
from dopsd.run_folder.tracked_pictures import loaded
from tests.helpers.runs import begun
from tests.helpers.tiny import make_config

SIZE = 16, 24
PNG = encode_png(Image.new("RGB", SIZE[::-1], "teal"))


def made(tmp_path, **preview):
    values = {"prompts": ["a cat", "a mat"], "every": 2, **preview}
    return make_config("base", run={"folder": str(tmp_path / "run")}, preview=values)


def writer(config, write=None, tracked=None, kept=None):
    tracked, kept = ([] if told is None else told for told in (tracked, kept))
    write = write or owned(config.run.folder).write_all
    return PictureWriter(config, SIZE, write, tracked.append, kept.extend)


def draw(target: PictureWriter, *pictures: tuple[int, int]) -> None:
    for drawn in pictures:
        target.add(drawn, lambda: PNG)
    target.end()


def test_pictures_appear_in_folder_record_history_and_trackers(tmp_path):
    config, tracked = made(tmp_path), []
    with begun(config):
        first = writer(config, tracked=tracked)
        assert first.rewind(0) == set()
        draw(first, (2, 0), (0, 1))
    folder = tmp_path / "run"
    assert (folder / prompt_path(2, 0)).read_bytes() == PNG
    entries = json.loads((folder / RECORD).read_text())["entries"]
    assert entries[prompt_path(2, 0)]["bytes"] == len(PNG) and entries[HISTORY]
    history = read_run_files(str(folder)).history  # as the live page does
    assert history is not None and [p.prompt for p in history.prompts] == ["a cat", "a mat"]
    assert [(p.version, p.prompt) for p in history.pictures] == [(0, 1), (2, 0)]
    assert [(p.version, p.number, p.prompt) for p in tracked] == [(2, 0, "a cat"), (0, 1, "a mat")]
    assert first.notices == []


def test_a_resumed_run_keeps_what_it_would_draw_again_as_it_is(tmp_path):
    config = made(tmp_path)
    with begun(config):
        first = writer(config)
        first.rewind(0)
        draw(first, (0, 0), (0, 1), (2, 0), (2, 1), (4, 0))
    kept = []
    assert writer(config, kept=kept).rewind(2) == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert [(p.version, p.number, p.prompt) for p in kept[:2]] == [(0, 0, "a cat"), (0, 1, "a mat")]
    assert [picture.png for picture in loaded(kept)] == [PNG] * 4
    assert drawn_prompts(config, SIZE) == {(0, 0), (0, 1), (2, 0), (2, 1)}, "4 is drawn anew"
    assert drawn_prompts(config, (16, 16)) == set()
    assert drawn_prompts(made(tmp_path, steps=7), SIZE) == set()
    assert drawn_prompts(made(tmp_path, prompts=["a dog", "a mat"]), SIZE) == {(0, 1), (2, 1)}
    (tmp_path / "run" / prompt_path(0, 0)).unlink()
    (tmp_path / "run" / prompt_path(0, 1)).write_bytes(b"somebody else's")
    assert drawn_prompts(config, SIZE) == {(2, 0), (2, 1)}
    (tmp_path / "run" / HISTORY).write_text("{")
    assert drawn_prompts(config, SIZE) == set()


def test_an_extended_run_keeps_its_samples_in_the_history(tmp_path):
    config = made(tmp_path)
    samples = [{"id": "one", "prompt": "a cat"}]
    rows = [{"version": v, "sample": 0, "states": [{"sigma": 1.0}]} for v in (0, 4, 6)]
    with begun(config):
        before = {"samples": samples, "rows": rows}
        owned(config.run.folder).write(HISTORY, json.dumps(before).encode())
        longer = writer(config)
        longer.rewind(4)  # the checkpoint of 6 was damaged: it is another 6 by then
        draw(longer, (6, 1))
    history = json.loads((tmp_path / "run" / HISTORY).read_text())
    assert (history["samples"], history["rows"]) == (samples, rows[:2])
    assert history["pictures"] == [{"version": 6, "prompt": 1}]


def test_a_start_on_s3_reads_no_picture_and_the_record_but_a_few_times(bucket, monkeypatch):
    config = make_config(
        "base", run={"folder": f"{bucket}/run"}, preview={"prompts": ["a cat"], "every": 1}
    )
    versions = range(40)
    with begun(config):
        pictures = {prompt_path(version, 0): PNG for version in versions}
        drawn = prompt_facts(config, SIZE, [(version, 0) for version in versions])
        history = {"samples": [], "rows": [], **drawn}
        owned(config.run.folder).write_all(pictures | {HISTORY: json.dumps(history).encode()})
        storage.remove(storage.join(config.run.folder, prompt_path(3, 0)))
        storage.write_bytes(storage.join(config.run.folder, prompt_path(4, 0)), b"another's")
        read: list[str] = []
        honest = storage.read_bytes
        monkeypatch.setattr(
            storage, "read_bytes", lambda path, *rest: read.append(path) or honest(path, *rest)
        )
        kept = writer(config).rewind(50)
    assert kept == {(version, 0) for version in versions if version not in (3, 4)}
    assert not [path for path in read if path.endswith(".png")] and len(read) < 10


def test_what_cannot_be_written_is_told_and_stops_nothing(tmp_path):
    config = made(tmp_path)

    def full(files):
        if prompt_path(0, 0) in files:
            raise StorageError("no space left")
        owned(config.run.folder).write_all(files)

    with begun(config):
        first = writer(config, full)
        first.rewind(0)
        draw(first, (0, 0), (0, 1))
    assert first.notices == [
        f"preview.prompts: {prompt_path(0, 0)} is not written while training: no space left"
    ]
    assert drawn_prompts(config, SIZE) == {(0, 1)}


def test_a_rewind_waits_for_no_picture_and_drops_the_one_on_its_way(tmp_path):
    config, on_its_way, there = made(tmp_path), threading.Event(), threading.Event()

    def fetch() -> bytes:
        on_its_way.set()
        assert there.wait(60)
        return PNG

    with begun(config):
        target = writer(config)
        target.rewind(0)
        target.add((4, 0), fetch)
        assert on_its_way.wait(60)
        rewinding = threading.Thread(target=target.rewind, args=(2,), daemon=True)
        rewinding.start()
        rewinding.join(30)
        assert not rewinding.is_alive()
        there.set()
        draw(target, (2, 1))
    assert drawn_prompts(config, SIZE) == {(2, 1)}


def test_nothing_is_written_into_the_folder_of_another_driver(tmp_path):
    config = made(tmp_path)
    asked = []

    def lost(files):
        asked.extend(files)
        raise LeaseLost("taken over")

    target = writer(config, lost)
    target.rewind(0)
    draw(target, (0, 0), (0, 1))
    assert asked == [prompt_path(0, 0)] and target.notices == []


@pytest.mark.parametrize(
    ("sections", "drawn"),
    [
        ({}, True),
        ({"source": "fused", "rollout": {}, "max_policy_lag": 0}, False),
        ({"adapters": "full"}, False),
        ({"method": {"objective": "off_policy"}}, False),
        ({"model": {"merge": ["training.safetensors"]}}, False),
        ({"model": {"merge": ["turbo.safetensors"], "draw_merged": True}}, True),
        ({"preview": {"samples": 4}}, False),
        ({"device": "cuda", "rollout": {"gpus": 0.9}, "encoder": {"gpus": 0.1}}, True),
        ({"device": "cuda", "rollout": {"gpus": 0.5}, "teacher": {"gpus": 0.5}}, False),
        ({"device": "cpu", "rollout": {"gpus": 0.5}, "teacher": {"gpus": 0.5}}, True),
        ({"device": "cuda", "rollout": {"gpus": 0.5, "workers": 2}}, False),
    ],
)
def test_only_rollout_workers_of_the_same_base_draw_while_training(sections, drawn):
    sections = {"preview": {"prompts": ["a cat"], "every": 4}, "learner": {"steps": 10}, **sections}
    config = make_config("base", **sections)
    assert drawn_while_training(config) == drawn
    assert drawn_versions(config)[0] == 0
