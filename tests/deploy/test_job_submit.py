"""`ray job submit` against a local cluster with token authentication on, which is lost once."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from dopsd.driver.verify import verify_run
from dopsd.run_folder.files import LEDGER_FILE
from dopsd.run_folder.jsonl import read_lines
from tests.deploy.heads import Head, finished
from tests.helpers.loras import read_lora
from tests.helpers.runs import run_config, write_images

pytestmark = pytest.mark.integration

JOB_SECONDS = 420.0
STEPS = 12


@pytest.fixture(scope="module")
def head():
    """A cluster of its own."""
    made = Head()
    try:
        made.start()
        yield made
    finally:
        made.remove()


def submit(head: Head, *words: str, token: Path | None = None) -> tuple[int, str]:
    return finished(head.submit(*words, token=token), JOB_SECONDS)


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    config = run_config(
        tiny_base,
        folder / "run",
        write_images(folder / "images", [(32, 32)] * 4),
        data={"shards": str(folder / "shards"), "bucket_multiple": 4},
        method={"steps": 2},
        learner={"cpus": 0.5, "steps": STEPS},
        checkpoint={"every_steps": 1},
        preview={"samples": 1},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_prepare_then_train_as_jobs_though_the_head_is_lost(head, recipe):
    folder = recipe.parent
    code, output = submit(head, "jobs/prepare.py", str(recipe))
    assert code == 0, output
    assert (folder / "shards" / "manifest.json").is_file()
    words = ["jobs/train.py", str(recipe)]
    first, until = head.submit(*words), time.monotonic() + JOB_SECONDS
    while not list((folder / "run" / "checkpoints").glob("step-*/checkpoint.json")):
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0]
        time.sleep(0.05)
    head.lose()
    assert finished(first, JOB_SECONDS)[0] != 0
    head.start()
    code, output = submit(head, *words)
    assert code == 0, output
    starts = [
        line["start"] for line in read_lines(str(folder / "run" / LEDGER_FILE)) if "start" in line
    ]
    assert starts[-1] > 0, "what was saved is not trained again"
    assert re.search(rf"Done: {STEPS} steps in \d+:\d\d", output)
    verdict = verify_run(str(folder / "run"))
    assert verdict.agrees and verdict.steps == STEPS, verdict.lines()
    assert read_lora(str(folder / "run" / "lora.safetensors"))
    assert (folder / "run" / "preview" / "contact_sheet.png").is_file()


def test_a_wrong_config_fails_the_job_with_its_one_line(head, recipe):
    code, output = submit(head, "jobs/train.py", str(recipe), "learner.lrr=1")
    assert code != 0
    line = "dopsd: learner.lrr: unknown key (did you mean lr?); allowed: workers"
    assert line in output


def test_without_the_token_nothing_is_accepted(head, recipe, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    code, output = submit(head, "jobs/train.py", str(recipe), token=wrong)
    assert code != 0
    assert "uthentication" in output
    assert "submitted successfully" not in output
