"""A library's worker without Ray: ``python -m tests.library.warm_worker BASE FOLDER OUT WORD...``

trains the concepts that the words name, one after the other, and writes the SHA-256 of each adapter
to ``OUT``. ``b:resume`` trains `b` from a state that an earlier attempt at it would have left.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.contexts.training import TrainingEncoderFactory
from dopsd.data.concepts import concept_groups
from dopsd.data.context_cache.files import ContextCache
from dopsd.data.context_cache.writer import GroupWriter
from dopsd.data.manifest import Manifest, PrepareSettings, RowGroup
from dopsd.data.prepare.layout import lay_out
from dopsd.data.prepare.shards import write_shard
from dopsd.data.run_data import read_spec
from dopsd.data.sources.rows import ByteRange, SourceRow
from dopsd.learner.zero.engine import read_preset
from dopsd.library.recipe import Recipes
from dopsd.library.worker import Job, LibraryWorker, SavedState
from tests.data.samples import picture
from tests.helpers.runs import run_config

STEPS, SAVED = 4, 2
SIZES = {"a": 3, "b": 4, "c": 3}
SETTINGS = PrepareSettings(pixel_area=1024, bucket_multiple=8, rows_per_group=4, seed=3)


def library_config(base: str, folder: Path) -> RunConfig:
    return run_config(
        Path(base),
        folder / "library",
        "unread",
        data={"shards": str(folder / "shards")},
        source="fused",
        learner={"workers": 1, "lr": 1e-2, "micro_batch": 1},
        library={"steps": {"min": STEPS, "max": STEPS}, "overrides": {"c": {"learner.lr": 5e-2}}},
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


def main(base: str, folder: Path, out: Path, words: list[str]) -> None:
    config = library_config(base, folder)
    manifest, cache = write_data(config, folder)
    recipes, groups = Recipes(config), concept_groups(manifest)
    worker = LibraryWorker(config, read_preset(config.learner.deepspeed), cache, "cpu")
    worker.load()
    states: dict[str, SavedState] = {}
    told = {}
    for word in words:
        name, _, resumes = word.partition(":")
        state = states[name] if resumes else None
        job = Job(
            name,
            recipes.config_of(name, STEPS),
            groups[name],
            1.0,
            {},
            state.step if state else 0,
            state.files if state else {},
            state.losses if state else [],
        )
        trained = worker.train(job)
        news = worker.news()
        assert news.step == trained.steps == STEPS
        if news.state is not None:
            assert news.state.step == SAVED
            states[name] = news.state
        told[word] = trained.adapter_sha256
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
