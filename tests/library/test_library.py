"""A concept does not know that it was trained in a library: its adapter is that of a run alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dopsd.checkpoint.learner_state import STUDENT_FILE
from dopsd.config import RunConfig
from dopsd.driver.train import train
from dopsd.library.folder import LEDGER, LORA, PAGE, SHEET, LibraryFolder
from dopsd.library.ledger import fold, read_ledger
from dopsd.library.report.status import DONE, SKIPPED, library_status
from dopsd.library.run import LibrarySummary, train_library
from dopsd.library.verify import verify_library
from dopsd.models.checksum import sha256
from dopsd.records import unpack
from tests.helpers.runs import quiet, run_config
from tests.helpers.tiny import random_image

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

STEPS = 5
CONCEPTS = {"../../x": 3, "<img onerror=alert(1)>": 4, "CON": 3, "lonely": 1}
"""In this order but for `lonely` they train, on one worker: only the first one meets it fresh."""


def write_source(folder: Path, concepts: Mapping[str, int] = CONCEPTS) -> Path:
    """A .jsonl, in which a concept may have any name."""
    folder.mkdir()
    lines = []
    for concept, count in concepts.items():
        for number in range(count):
            name = f"{len(lines)}.png"
            size = (32, 32) if number % 2 else (24, 40)
            Image.fromarray(random_image(*size, len(lines))).save(folder / name)
            caption = f"a red cat, number {number}"
            lines.append(json.dumps({"image": name, "caption": caption, "concept": concept}))
    (folder / "all.jsonl").write_text("\n".join(lines))
    return folder / "all.jsonl"


def library_config(base: Path, folder: Path, name: str, **sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"shards": str(folder / "shards"), "rows_per_group": 4},
        "source": "fused",
        "learner": {"workers": 1, "steps": STEPS, "lr": 1e-2, "micro_batch": 1, "cpus": 0.5},
        "library": {"steps": {"per_image": 1, "min": STEPS, "max": STEPS}},
        "checkpoint": {"every_steps": STEPS},
    }
    for key, section in sections.items():
        merged = isinstance(section, dict)
        values[key] = {**values.get(key, {}), **section} if merged else section
    return run_config(base, folder / name, folder / "source" / "all.jsonl", **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    write_source(folder / "source")
    return folder


@pytest.fixture(scope="module")
def library(tiny_base: Path, folder: Path, ray_cluster: None) -> LibrarySummary:
    return train_library(
        library_config(tiny_base, folder, "library", preview={"samples": 2}), quiet
    )


def test_every_concept_is_done_or_has_its_reason(library: LibrarySummary, folder: Path) -> None:
    assert library.problems == [] and library.trained == 3
    assert (library.counts.done, library.counts.skipped, library.counts.parked) == (3, 1, 0)
    status = library_status(library.folder)
    done = status.having(DONE).keys()
    assert done == CONCEPTS.keys() - {"lonely"}
    assert status.having(SKIPPED)["lonely"].startswith("too few pictures: 1, library.min_images: 3")
    index = pq.read_table(f"{library.folder}/index.parquet").to_pylist()
    assert [row["status"] for row in index] == [row["status"] for row in status.rows]
    page = Path(library.folder, PAGE).read_text()
    assert "&lt;img onerror=alert(1)&gt;" in page and page.count("data:image/webp") == len(done)
    assert all(bool(row["thumbnail"]) == (row["status"] == DONE) for row in index)
    told = verify_library(library.folder).lines()
    assert told == [f"3 of 3 concepts are done and whole, {3 * STEPS} steps once in the ledger"]
    stories = fold(read_ledger(f"{library.folder}/{LEDGER}"))
    assert {n: s.spans for n, s in stories.items()} == {n: [(0, STEPS)] for n in done}
    card = LibraryFolder(library.folder).card("CON")
    assert card is not None and card.files.keys() == {LORA, SHEET}
    assert card.scores is not None and card.scores.metric == "latent"
    written = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert written == {"source", "shards", "library"}
    assert not any((folder / "library" / "state").rglob("*.*"))


def test_a_later_concept_of_a_warm_worker_is_bit_for_bit_that_of_a_run_alone(
    library: LibrarySummary, tiny_base: Path, folder: Path
) -> None:
    name = "CON" if sorted(CONCEPTS)[0] != "CON" else "<img onerror=alert(1)>"
    alone = library_config(tiny_base, folder, "alone", data={"concepts": [name]})
    # As its card says, and no more of the other concepts than their being in the shards.
    alone.data.shards = str(folder / "shards")
    alone.data.rows_per_group = 4
    summary = train(alone, quiet)
    card = LibraryFolder(library.folder).card(name)
    assert card is not None and (card.steps, card.planned_steps) == (STEPS, STEPS)
    checkpoint = Path(summary.folder) / "checkpoints" / f"step-{STEPS:06d}" / STUDENT_FILE
    student, _ = unpack(checkpoint.read_bytes())
    assert sha256(student) == card.adapter_sha256
    path = f"{LibraryFolder(library.folder).concept(name)}/lora.safetensors"
    assert summary.lora is not None
    mine, theirs = load_file(path), load_file(summary.lora)
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, theirs[key].bfloat16())
    with safe_open(path, "pt") as file:
        assert file.metadata()["dopsd.concept"] == name


def test_the_same_command_says_that_all_is_done_and_trains_what_changed(
    library: LibrarySummary, tiny_base: Path, folder: Path
) -> None:
    again = train_library(library_config(tiny_base, folder, "library"), quiet)
    assert again.trained == 0 and again.counts == library.counts
