"""Whatever we do in whatever folder, every file of somebody else's is there afterwards.

Random trees of such files, beside and inside each folder that a command writes, under free names of
ours too; what writes and removes there, in random order, with a storage that fails now and then.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dopsd.checkpoint.folder import prune, remove_unfinished, steps, write_checkpoint
from dopsd.data.pictures.drawn import drawn_png
from dopsd.data.prepare.folder import (
    check_shards_folder,
    free_generation,
    listed_files,
    remove_shards,
)
from dopsd.data.prepare.run import _ASIDE, _begun
from dopsd.data.schema import SCHEMA, SHARD, shard_generation
from dopsd.driver.drawing.prior import placed_beside
from dopsd.errors import DopsdError
from dopsd.evaluation.folder import check_out as check_evaluation
from dopsd.evaluation.folder import owned as owned_evaluation
from dopsd.evaluation.generate import check_out as check_pictures
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder
from dopsd.ownership.scratch import scratch_folder
from dopsd.run_folder.outputs import owned as owned_run
from dopsd.run_folder.outputs import seal_outputs
from tests.helpers.runs import begun
from tests.helpers.tiny import make_config

FOLDERS = ("run", "run/shards", "run/checkpoints", "run/preview", "shards", "evaluation", "out")
NAMES = (
    *("notes.txt", "sub/a.bin", "lora.safetensors", "report.html", "summary.json", "results.json"),
    *("step-000002/extra.bin", "step-000003/model.pt", "contact_sheet.png", "000.png", "001.png"),
    *("shard-00000.parquet", "shard-00001.parquet", "shard-00000-of-00001.parquet", "mine.parquet"),
    *("prior-1/a.png", "pictures/base/0.png", "checkpoints/best.pt", "wandb/run-1/x"),
    *("manifest.json", "transformer/config.json", "preview/mine.png", "debug/log"),
)  # fmt: skip


class Failing:
    """A storage whose writes and removals fail now and then."""

    def __init__(self, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rate = 0.0
        for name in ("write_bytes", "remove", "remove_if_empty"):
            honest = getattr(storage, name)

            def act(*arguments, _honest=honest, **options):
                if chance.random() < self.rate:
                    raise OSError(28, "No space left on device")
                _honest(*arguments, **options)

            monkeypatch.setattr(storage, name, act)


def a_run(root: str, chance: random.Random) -> None:
    config = make_config("base", run={"folder": f"{root}/run", "overwrite": True})
    with begun(config, resume=chance.random() < 0.3):
        own = owned_run(f"{root}/run")
        storage.write_bytes(f"{root}/run/metrics.jsonl", b"{}\n")
        a_checkpoint(root, chance)
        own.write("preview/contact_sheet.png", b"drawn")
        own.write_all({"lora.safetensors": b"ours", "summary.json": b"{}"})
        own.write("report.html", b"page")
        seal_outputs(f"{root}/run")


def a_checkpoint(root: str, chance: random.Random) -> None:
    folder, step = f"{root}/run/checkpoints", chance.randrange(1, 6)
    files = {"student.safetensors": bytes(chance.randrange(9)), "ema.safetensors": b"e"}
    said = {"config": {}, "data": "f", "plan": "p", "learners": 1}
    try:
        write_checkpoint(folder, files, step=step, policy_versions=(step,), **said)
        prune(folder, step, keep_last=1, keep_every=0)
    except (OSError, DopsdError):
        remove_unfinished(folder, step)


def a_data_set(root: str, chance: random.Random) -> None:
    shards = f"{root}/{chance.choice(['shards', 'run/shards'])}"
    if shards.startswith(f"{root}/run/"):
        owned_run(f"{root}/run").claim("shards/")
    check_shards_folder(shards)
    with _begun(shards) as own, scratch_folder(shards, _ASIDE) as aside:
        storage.write_bytes(f"{aside}/000000", b"picture")
        names = [SHARD.format(number) for number in range(chance.randrange(1, 3))]
        generation = free_generation(own, names)
        names = [shard_generation(name, generation) for name in names]
        own.claim(*names)
        for name in names:
            pq.write_table(pa.Table.from_pylist([], SCHEMA), f"{shards}/{name}")
            if chance.random() < 0.2:
                raise KeyboardInterrupt
        old = listed_files(shards)
        groups = [{"file": name} for name in names]
        text = json.dumps({"format": "dopsd-shards", "row_groups": groups})
        storage.write_bytes(f"{shards}/manifest.json", text.encode())
        remove_shards(own, old - set(names))


def a_prior(root: str, chance: random.Random) -> None:
    with placed_beside(f"{root}/shards/prior-1") as aside:
        OwnedFolder(aside, "shards", "x").claim("0.png", "manifest.json")
        storage.write_bytes(f"{aside}/0.png", b"drawn")
        storage.write_bytes(f"{aside}/manifest.json", b"{}")


def an_evaluation(root: str, chance: random.Random) -> None:
    out = f"{root}/evaluation"
    check_evaluation(out)
    own = owned_evaluation(out)
    own.claim("pictures/", "scores/")
    own.write_all({"results.json": b"{}", "results.md": b""})


def pictures(root: str, chance: random.Random) -> None:
    paths = [f"{root}/out/00{number}.png" for number in range(2)]
    check_pictures(f"{root}/out", paths)
    for path in paths:
        storage.write_bytes(path, drawn_png(Image.new("RGB", (2, 2), (chance.randrange(9), 0, 0))))


COMMANDS: tuple[Callable[[str, random.Random], None], ...] = (
    *(a_run, a_run, a_checkpoint, a_data_set, a_data_set, a_prior, an_evaluation, pictures),
)


def recorded(root: Path, path: Path) -> bool:
    """Whether a record of ours promises the name to us already, although nothing is there."""
    for parent in path.relative_to(root).parents:
        record = root / parent / ".dopsd.json"
        if record.is_file():
            entries = json.loads(record.read_text())["entries"]
            if path.relative_to(root / parent).as_posix() in entries:
                return True
    return False


def strew(root: Path, chance: random.Random, foreign: dict[Path, bytes]) -> None:
    """Put a few files of somebody else's where nothing is, and take some away: what is in the way
    of a command would keep it from everything else."""
    for path in chance.sample(sorted(foreign), len(foreign) // 2):
        path.unlink()
        del foreign[path]
    below = sorted(path for path in root.rglob("*") if path.is_dir())
    for _ in range(chance.randrange(4)):
        folder = chance.choice([*below, *(root / name for name in FOLDERS)])
        path = folder / chance.choice(NAMES)
        if not path.exists() and not recorded(root, path):
            with suppress(OSError):  # a file has the folder's place
                path.parent.mkdir(parents=True, exist_ok=True)
                foreign[path] = chance.randbytes(8)
                path.write_bytes(foreign[path])


@pytest.mark.parametrize("seed", range(25))
def test_every_foreign_file_stays_byte_for_byte(tmp_path: Path, monkeypatch, seed: int) -> None:
    chance, foreign = random.Random(seed), {}
    failing = Failing(chance, monkeypatch)
    done = 0
    for command in COMMANDS:  # so that there are folders of ours to lie in
        with suppress(KeyboardInterrupt):
            command(str(tmp_path), chance)
    for _ in range(30):
        if chance.random() < 0.4:
            strew(tmp_path, chance, foreign)
        failing.rate = chance.choice([0, 0, 0.1])
        with suppress(OSError, DopsdError, KeyboardInterrupt):
            chance.choice(COMMANDS)(str(tmp_path), chance)
            done += 1
        failing.rate = 0
        lost = [path for path, payload in foreign.items() if path.read_bytes() != payload]
        assert not lost
    assert done, "all were refused"


def test_without_foreign_files_nothing_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch
) -> None:
    chance = random.Random(0)
    for _ in range(3):
        for command in (a_run, a_checkpoint, a_prior, an_evaluation, pictures):
            command(str(tmp_path), chance)
    root = f"{tmp_path}/run/checkpoints"
    assert len(steps(root)) == 1
    left = {path.name for path in tmp_path.rglob("*") if ".tmp-" in path.name or path.is_symlink()}
    assert not left
