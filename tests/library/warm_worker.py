"""A library's worker without Ray: ``python -m tests.library.warm_worker BASE FOLDER OUT WORD...``

trains the concepts that the words name, one after the other, and writes the SHA-256 of each adapter
and of its sheet to ``OUT``. ``b:resume`` trains `b` from a state that an earlier attempt at it
would have left, ``b:back`` is asked to give it back at once and trains it from there; ``plain`` as
the first word keeps no sheets.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.context_cache.writer import GroupWriter
from dopsd.data.manifest import Manifest, PrepareSettings, RowGroup
from dopsd.data.planning.concepts import ConceptGroup, concept_groups
from dopsd.data.prepare.layout import lay_out
from dopsd.data.prepare.shards import write_shard
from dopsd.data.run_data import read_spec
from dopsd.data.sources.rows import ByteRange, SourceRow
from dopsd.learner.zero.engine import read_preset
from dopsd.library.catalogue.recipe import Recipes
from dopsd.library.report.sheet import THUMBNAIL_BYTES, Sheet
from dopsd.library.workers.jobs import Job, SavedState, Trained
from dopsd.library.workers.worker import LibraryWorker
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import lora_layers
from tests.data.samples import picture
from tests.helpers.runs import run_config

STEPS, SAVED = 4, 2
SIZES = {"a": 3, "b": 4, "c": 3}
SETTINGS = PrepareSettings(pixel_area=1024, bucket_multiple=8, rows_per_group=4, seed=3)


def library_config(base: str, folder: Path, sheets: bool) -> RunConfig:
    return run_config(
        Path(base),
        folder / "library",
        "unread",
        data={"shards": str(folder / "shards")},
        source="fused",
        learner={"workers": 1, "lr": 1e-2, "micro_batch": 1},
        library={
            "steps": {"min": STEPS, "max": STEPS},
            "overrides": {"c": {"learner.lr": 5e-2}},
            "keep": ["lora", "sheet"] if sheets else ["lora"],
        },
        preview={"samples": 2},
        checkpoint={"every_steps": SAVED},
    )


def write_data(config: RunConfig, folder: Path) -> tuple[Manifest, ContextCache]:
    """Shards and contexts, as `dopsd prepare --cache-contexts` makes them."""
    rows = []
    for concept, count in SIZES.items():
        for number in range(count):
            path = folder / f"{len(rows)}.png"
            picture(len(rows), *((32, 32) if number % 2 else (40, 24))).save(path)
            row = SourceRow(path.name, f"{concept}/{number}", ByteRange(str(path)), concept)
            row.captions = {"caption": f"a red cat, number {number}"}
            rows.append(row)
    buckets = ["32x32" if int(row.sample_id[2:]) % 2 else "40x24" for row in rows]
    samples = [(n, row.sample_id, buckets[n], row.concept or "") for n, row in enumerate(rows)]
    groups = []
    spec, cache = (
        read_spec(config),
        ContextCache(str(folder / "contexts"), "f", {}, True, False, ""),
    )
    factory = TrainingEncoderFactory(config, "cpu")
    writer = GroupWriter(factory(), config.shards, cache.folder, spec, "f", {})
    for shard in lay_out(samples, SETTINGS):
        held = [(bucket, [rows[at] for at in indices]) for bucket, indices in shard.groups]
        write_shard(f"{config.shards}/{shard.file}", held)
        for number, (bucket, own) in enumerate(held):
            runs = tuple(
                (n, len(list(run))) for n, run in groupby(row.concept or "" for row in own)
            )
            groups.append(
                RowGroup(
                    file=shard.file, row_group=number, bucket=bucket, rows=len(own), concepts=runs
                )
            )
            writer.write(shard.file, number, len(own))
    manifest = Manifest(
        source="unread",
        settings=SETTINGS,
        seen=len(rows),
        samples=len(rows),
        buckets={},
        concepts=SIZES,
        caption_sets=(),
        references={},
        fingerprint="f",
        row_groups=tuple(groups),
        quarantined=(),
        notes=(),
    )
    return manifest, cache


def check_sheet(sheet: Sheet) -> None:
    """Two rows of three pictures, a thumbnail of one, and scores of an adapter that moved."""
    with Image.open(io.BytesIO(sheet.webp)) as image:
        assert image.format == "WEBP" and image.width > 3 * 192
    with Image.open(io.BytesIO(sheet.thumbnail)) as image:
        assert (image.format, len(sheet.thumbnail) <= THUMBNAIL_BYTES) == ("WEBP", True)
    scores = sheet.scores
    assert scores.metric == "latent" and scores.base > 0 and scores.student != scores.base
    assert scores.sharpness is not None and scores.sharpness != 1.0


def check_left_as_it_was(worker: LibraryWorker, groups: Sequence[ConceptGroup]) -> None:
    """Drawing once more changes nothing of the model: neither bits, nor modes, nor what trains."""
    assert worker._engine is not None and worker._sheets is not None
    student = worker._engine.student

    def state() -> tuple[object, ...]:
        layers = [layer.active_adapters for _, layer in lora_layers(student.transformer)]
        modes = [(m.training, type(m)) for m in student.modules()]
        return (
            layers,
            modes,
            [(n, p.requires_grad, p.grad is None) for n, p in student.named_parameters()],
            checksum(dict(student.named_parameters())),
            torch.get_rng_state().tolist(),
        )

    before = state()
    worker._sheets.draw(groups, torch.device("cpu"))
    assert state() == before


def given_back(worker: LibraryWorker, job: Job) -> SavedState:
    """Where a concept stands that is wanted back from its first step on."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.001):
            worker.give_back(job.concept)

    asking = threading.Thread(target=ask)
    asking.start()
    state = worker.train(job)
    over.set()
    asking.join()
    assert isinstance(state, SavedState) and 0 < state.step < STEPS
    assert [step for step, _ in state.losses] == list(range(state.step))
    return state


def main(base: str, folder: Path, out: Path, words: list[str]) -> None:
    plain = words[0] == "plain"
    config = library_config(base, folder, sheets=not plain)
    manifest, cache = write_data(config, folder)
    recipes, groups = Recipes(config), concept_groups(manifest)
    worker = LibraryWorker(config, read_preset(config.learner.deepspeed), cache, "cpu")
    worker.load()
    states: dict[str, SavedState] = {}
    told = {}
    for word in words[plain:]:
        name, _, how = word.partition(":")
        job = Job(name, recipes.config_of(name, STEPS), groups[name], 1.0, {}, 0, {}, [])
        if how:
            state = states[name] if how == "resume" else given_back(worker, job)
            job = replace(job, first=state.step, files=state.files, losses=state.losses)
        before = torch.get_rng_state()
        trained = worker.train(job)
        assert isinstance(trained, Trained)
        assert trained.no_sheet == "" and (trained.sheet is None) == plain
        if trained.sheet is not None:
            assert torch.equal(torch.get_rng_state(), before), "training draws nothing of torch's"
            check_left_as_it_was(worker, groups[name])
        news = worker.news(name)
        assert news.step == trained.steps == STEPS
        if news.state is not None:
            assert news.state.step == SAVED
            states[name] = news.state
        told[word] = trained.adapter_sha256
        if trained.sheet is not None:
            told[f"{word}:sheet"] = hashlib.sha256(trained.sheet.webp).hexdigest()
            check_sheet(trained.sheet)
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
