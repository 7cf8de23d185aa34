"""The whole head is lost, and the same words are submitted to a new one: the adapter stays.

`pytest -m nightly tests/deploy/test_lost_head.py` prints what each loss costs.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from dopsd.driver.verify import verify_run
from dopsd.files import storage
from tests.deploy.heads import POD, Head, finished, no_pods
from tests.helpers.runs import run_config, write_images

pytestmark = pytest.mark.nightly
LIMIT = 1200.0
STEPS, SAVED = 12, 4

# The write during which the head is lost (S3 does not answer it, so that it is always that very
# moment), and the most steps that the second submission may train again.
MOMENTS = {
    "while preparing": ("shards/manifest.json", 0),
    "before the first checkpoint": (f"step-{SAVED:06d}/checkpoint.json", STEPS),
    # The last checkpoint waits for the one before it; in between they may be left out.
    "after a checkpoint": (f"step-{STEPS:06d}/checkpoint.json", STEPS - SAVED),
    "at the export": ("run/lora.safetensors", 0),
}


@pytest.fixture
def head():
    """In a pod of its own: a new one cannot ask for the processes of a lost one, and has nothing
    but the heart-beats on S3 to go by."""
    if reason := no_pods():
        pytest.skip(reason)
    made = Head(POD)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def recipe(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    config = run_config(
        tiny_base,
        folder / "run",
        write_images(folder / "images", [(32, 32)] * 7),
        data={"bucket_multiple": 4},
        method={"steps": 2},
        # A remainder in every epoch, and a rate at which every step shows.
        learner={"cpus": 0.5, "steps": STEPS, "lr": 1e-3},
        checkpoint={"every_steps": SAVED},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def words(recipe: Path, folder: str) -> list[str]:
    """Of every submission, the first one and those after a loss."""
    outputs = [f"data.shards={folder}/shards", f"run.folder={folder}/run"]
    return ["jobs/train.py", str(recipe), *outputs, "run.resume=auto"]


@pytest.fixture(scope="module")
def calm(recipe, bucket) -> tuple[bytes, float]:
    """(adapter, seconds) of the run that nothing disturbs."""
    folder, head = f"{bucket}/calm", Head()
    try:
        head.start()
        began = time.monotonic()
        code, output = finished(head.submit(*words(recipe, folder)), LIMIT)
        assert code == 0, output
        return storage.read_bytes(f"{folder}/run/lora.safetensors"), time.monotonic() - began
    finally:
        head.remove()


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_words_end_with_the_same_adapter(
    moment, head, recipe, calm, bucket, faults, capsys
):
    adapter, undisturbed = calm
    folder = f"{bucket}/{moment.replace(' ', '-')}"
    submission = words(recipe, folder)
    write, most = MOMENTS[moment]
    head.start()
    began = time.monotonic()
    unanswered = faults.add("hang", f"{folder.partition('//')[2]}/.*{write}", method="PUT")
    first = head.submit(*submission)
    while not unanswered.hits:
        assert first.poll() is None and time.monotonic() < began + LIMIT, first.communicate()[0]
        time.sleep(0.05)
    head.lose()
    lost = time.monotonic()
    assert finished(first, LIMIT)[0] != 0
    head.start()
    code, output = finished(head.submit(*submission), LIMIT)
    assert code == 0, output
    seconds = time.monotonic() - began - undisturbed
    with capsys.disabled():
        print(f"\nhead killed {moment}: {seconds:.0f} s lost, {lost - began:.0f} s after its start")

    assert storage.read_bytes(f"{folder}/run/lora.safetensors") == adapter
    verdict = verify_run(f"{folder}/run")
    assert verdict.agrees and verdict.steps == STEPS, verdict.lines()
    assert verdict.again <= most
