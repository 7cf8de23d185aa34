"""Contexts encoded once: what training reads is what its encoders would have made, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.config.load import shown_values
from dopsd.contexts.training import TrainingEncoder, TrainingEncoderFactory
from dopsd.data.context_cache.files import (
    PREFIX,
    RECORD,
    CachedRows,
    CacheRecord,
    ContextCache,
    cache_file,
    read_cached,
)
from dopsd.data.context_cache.writer import GroupWriter
from dopsd.data.manifest import Manifest
from dopsd.data.planning.plan import MicroBatch
from dopsd.data.read import READ_SCHEMA, ReadSpec, RowGroups, read_micro_batch, samples_of
from dopsd.data.run_data import plan_of, prepared, read_spec
from dopsd.data.stream.block import load_encoded
from dopsd.data.stream.pipeline import encode_micro_batch
from dopsd.driver.context_cache import encode_contexts, find_context_cache, made_of
from dopsd.driver.monitoring.progress import Event
from dopsd.driver.train import train
from dopsd.errors import DataError
from dopsd.files.seal import sealed, unsealed
from dopsd.models.fingerprint import fingerprint
from dopsd.records import EncodedBatch
from tests.helpers.loras import ups
from tests.helpers.runs import quiet
from tests.helpers.tiny import make_config, random_image
from tests.helpers.tiny_flux2 import make_flux2_config

pytestmark = pytest.mark.usefixtures("ray_cluster")

CASES: dict[str, dict[str, Any]] = {
    "vlm": {"family": "z_image", "dropout": 0.4},
    "enhanced_prompt": {"family": "z_image", "pairs": [["short", "long"], ["short", "other"]]},
    "edit": {"family": "flux2_klein", "dropout": 0.4},
    "edit_reference": {"family": "flux2_klein", "objective": "sft"},
}
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "vlm": [
        ({"model": {"dtype": "bfloat16"}}, 'dtype: "float32" there, "bfloat16" needed'),
        ({"context": {"text_tokens": 32}}, "text_tokens: 64 there, 32 needed"),
        ({"context": {"image_text_tokens": 99}}, "image_text_tokens: 480 there, 99 needed"),
        ({"context": {"image_max_pixels": 3072}}, "image_max_pixels: 4096 there, 3072 needed"),
        ({"method": {"objective": "sft"}}, "latents: false there, true needed; vae: none there"),
    ],
    "enhanced_prompt": [
        ({"context": {"prompt_pairs": [["long", "short"]]}}, '[["long", "short"]] needed'),
        (
            {"context": {"name": "vlm", "prompt_pairs": []}},
            'context: "enhanced_prompt" there, "vlm" needed; caption_keys: none there',
        ),
    ],
    "edit": [
        ({"context": {"instruction": "Copy."}}, '"Copy." needed'),
        ({"data": {"caption_keys": ["tags"]}}, '["tags"] needed'),
    ],
    "edit_reference": [
        ({"data": {"bucket_multiple": 16}}, "reference_multiple: 8 there, 16 needed"),
        ({"context": {"reference_max_pixels": 400}}, "reference_max_pixels: 1048576 there"),
        ({"method": {"objective": "dopsd"}}, "teacher: false there, true needed"),
    ],
}


def write_source(folder: Path, rows: int = 6) -> str:
    """Pictures in two buckets, captions of several lengths, references of several sizes."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(rows):
        size = ((32, 32), (24, 40))[number % 2]
        Image.fromarray(random_image(*size, number)).save(folder / f"{number}.png")
        names = [f"r{number}-{n}.png" for n in range(1 + number % 2)]
        for n, name in enumerate(names):
            Image.fromarray(random_image(24 + 8 * n, 40, n)).save(folder / name)
        captions = {
            "short": f"cat {number}",
            "long": f"a {'very ' * number}red cat on a blue mat {number}",
        }
        if number % 3:
            captions["other"] = f"the cat of number {number}"
        lines.append({"image": f"{number}.png", "captions": captions, "references": names})
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "set.jsonl")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[str, str]:
    """(source, shards): prepared once for all contexts."""
    folder = tmp_path_factory.mktemp("encoded")
    source = write_source(folder / "source")
    config = make_config("unused", data=data_section(source, str(folder / "shards")))
    prepared(config, lambda status: None)
    return source, str(folder / "shards")


def data_section(source: str, shards: str, **more: Any) -> dict[str, Any]:
    sizes = {"pixel_area": 1024, "bucket_multiple": 8, "rows_per_group": 2}
    return {"source": source, "shards": shards, **sizes, **more}


@dataclass
class World:
    """A config with its data, its encoder, and what was encoded of it in this process."""

    config: RunConfig
    manifest: Manifest
    encoder: TrainingEncoder
    encoded: ContextCache

    def batches(self) -> Iterator[MicroBatch]:
        plan = plan_of(self.config, self.manifest)
        yield from plan.micro_batches(0, 2 * plan.steps_per_epoch)

    def online(self, batch: MicroBatch) -> EncodedBatch:
        values = read_micro_batch(batch, self.groups(read_spec(self.config)), self.config.run.seed)
        table = pa.Table.from_pylist([values], schema=READ_SCHEMA)
        return load_encoded(encode_micro_batch(table, self.encoder))

    def cached(self, batch: MicroBatch, rows: CachedRows | None = None) -> EncodedBatch:
        reads = read_spec(self.config)
        captions = ReadSpec(reads.caption_keys, reads.caption_dropout, reads.prompt_pairs, False)
        rows = rows or CachedRows(self.encoded)
        return read_cached(batch, self.groups(captions), rows, self.config.run.seed)

    def groups(self, reads: ReadSpec) -> RowGroups:
        return RowGroups(self.config.shards, reads)


def write_encoded(config: RunConfig, manifest: Manifest, encoder: TrainingEncoder) -> ContextCache:
    """As ``encode`` leaves a folder, without actors."""
    entries = made_of(config, manifest)
    made = fingerprint(entries)
    folder = f"{config.shards}/{PREFIX}{made}"
    writer = GroupWriter(encoder, config.shards, folder, read_spec(config), made, entries)
    files = {}
    for group in manifest.row_groups:
        writer.write(group.file, group.row_group, group.rows)
        name = cache_file(group.file, group.row_group)
        files[name] = (Path(folder) / name).stat().st_size
    record = CacheRecord(
        fingerprint=made, entries=entries, samples=manifest.samples, files=files, versions={}
    )
    (Path(folder) / RECORD).write_bytes(sealed(record.model_dump(mode="json")))
    reads = entries["teacher"], entries["latents"]
    return ContextCache(folder, made, entries, *reads, record.digest)


@pytest.fixture(scope="module", params=list(CASES))
def world(
    request: Any, shards: tuple[str, str], tiny_base: Path, tiny_flux2: Path, tmp_path_factory: Any
) -> World:
    case, own = CASES[request.param], tmp_path_factory.mktemp(request.param) / "shards"
    shutil.copytree(shards[1], own)
    make: Callable[..., RunConfig] = make_config
    base = tiny_base
    if case["family"] == "flux2_klein":
        make, base = make_flux2_config, tiny_flux2
    objective = case.get("objective", "dopsd")
    context = {"name": request.param, "text_tokens": 64, "prompt_pairs": case.get("pairs", [])}
    config = make(
        base,
        context=context,
        data=data_section(shards[0], str(own), caption_dropout=case.get("dropout", 0.0)),
        method={"objective": objective},
        learner={"global_batch": 3, "micro_batch": 3},
        source="fused",
    )
    manifest = prepared(config, lambda status: None)
    encoder = TrainingEncoderFactory(config, "cpu")()
    return World(config, manifest, encoder, write_encoded(config, manifest, encoder))


def equal(one: EncodedBatch, other: EncodedBatch) -> None:
    assert one.info == other.info
    for role in ("student", "teacher"):
        left, right = getattr(one, role), getattr(other, role)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.tensors.keys() == right.tensors.keys()
            for name, tensor in left.tensors.items():
                found = right.tensors[name]
                assert tensor.dtype == found.dtype and torch.equal(tensor, found), (role, name)
    assert (one.target is None) == (other.target is None)
    assert one.target is None or torch.equal(one.target, other.target)


def test_batches_are_bitwise_those_of_the_encoder(world: World) -> None:
    prompts, sizes = set(), set()
    rows = CachedRows(world.encoded)
    for batch in world.batches():
        found = world.cached(batch, rows)
        equal(found, world.online(batch))
        prompts |= set(found.info.prompts)
        sizes.add(len(found.info))
    assert max(sizes) > 1, "rows of several lengths were joined"
    assert ("" in prompts) == (world.config.data.caption_dropout > 0)
    sft = world.config.method.objective == "sft"
    assert (found.target is not None) == sft and (found.teacher is None) == sft


def test_a_sample_has_the_same_bits_in_every_micro_batch(world: World) -> None:
    batch = next(each for each in world.batches() if len(each.rows) > 1)
    values = read_micro_batch(batch, world.groups(read_spec(world.config)), 0)
    samples = samples_of(values)
    student, _, _ = world.encoder.encode(samples)
    alone, _, _ = world.encoder.encode(samples[1:2])
    for name, tensor in alone.tensors.items():
        row = student.tensors[name][1]
        row = row[: tensor.shape[1]] if tensor.dim() > 1 else row
        assert torch.equal(row, tensor[0]), name


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    values = shown_values(config)
    for name, section in sections.items():
        values[name] |= section
    return RunConfig.model_validate(values)


def refusal(config: RunConfig, manifest: Manifest) -> str:
    config = changed(config, data={"context_cache": "require"})
    with pytest.raises(DataError) as caught:
        find_context_cache(config, manifest, quiet)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_stale_contexts_are_refused_by_what_differs(world: World, tmp_path: Path) -> None:
    config, manifest, made = world.config, world.manifest, world.encoded.fingerprint
    for change, said in REFUSED[config.context.name]:
        other = changed(config, **change)
        message = refusal(other, manifest)
        needed = fingerprint(made_of(other, manifest))
        assert said in message and made in message and needed in message, message
    said = refusal(config, manifest.model_copy(update={"fingerprint": "f" * 64}))
    assert f'data: "{manifest.fingerprint[:50]}' in said and "; " not in said
    groups = manifest.row_groups[::-1]
    assert "layout: " in refusal(config, manifest.model_copy(update={"row_groups": groups}))

    base = tmp_path / "base"
    shutil.copytree(config.model.base, base)
    (weights,) = (base / "text_encoder").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    message = refusal(changed(config, model={"base": str(base)}), manifest)
    assert 'text_encoder: "' in message and "; " not in message, "nothing else differs"


def test_modes(world: World, tmp_path: Path) -> None:
    config, manifest = world.config, world.manifest
    lines: list[str] = []

    def show(phase: str, status: Event) -> None:
        lines.extend(status.lines)  # type: ignore[union-attr]

    assert find_context_cache(config, manifest, show) == world.encoded
    assert lines.pop() == f"Contexts: read from {world.encoded.folder}; no encoder is loaded."
    assert (
        find_context_cache(changed(config, data={"context_cache": "off"}), manifest, show) is None
    )
    assert not lines
    longer = changed(config, context={"text_tokens": 65})
    assert find_context_cache(longer, manifest, show) is None
    assert lines.pop().startswith("Contexts: encoded while training, since ")
    nothing = changed(config, data={"shards": str(tmp_path)})
    assert find_context_cache(nothing, manifest, show) is None and not lines
    assert "holds no context cache; run `dopsd prepare" in refusal(nothing, manifest)


def test_a_run_that_needs_less_reads_the_same_contexts(world: World) -> None:
    less = changed(world.config, data={"caption_dropout": 0.0})
    if not less.context.prompt_pairs:
        less = changed(less, data={"caption_keys": ["long"]})
    found = find_context_cache(less, world.manifest, quiet)
    assert found == world.encoded
    narrow = World(less, world.manifest, world.encoder, found)
    for batch in narrow.batches():
        equal(narrow.cached(batch), narrow.online(batch))


def test_mixed_and_broken_folders_are_refused(world: World, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(world.config.shards, shards)
    config = changed(world.config, data={"shards": str(shards)})
    folder = shards / Path(world.encoded.folder).name
    first, second, *_ = sorted(folder.glob("*.parquet"))
    whole, other, record = first.read_bytes(), second.read_bytes(), folder / RECORD
    encoded = find_context_cache(config, world.manifest, quiet)
    assert encoded is not None
    broken = World(config, world.manifest, world.encoder, encoded)
    batches = list(broken.batches())

    def read_all() -> str:
        with pytest.raises(DataError) as caught:
            for batch in batches:
                broken.cached(batch)
        return str(caught.value)

    first.write_bytes(whole[:-1])
    assert f"{first.name}: {len(whole) - 1} bytes, encoded.json says" in refusal(
        config, world.manifest
    )
    assert "cannot be read" in read_all()
    first.write_bytes(other)
    assert "holds no contexts of sample" in read_all(), "another file of the same making"
    flipped = bytearray(whole)
    for place in range(1000, 3 * len(whole) // 4, 1000):
        flipped[place] ^= 1
    first.write_bytes(flipped)
    assert f"{first.name}: cannot be read" in read_all()
    first.unlink()
    assert f"{first.name}: missing" in refusal(config, world.manifest)
    assert f"{first.name}: no such file" in read_all()

    foreign = changed(config, context={"text_tokens": 48})
    made = write_encoded(foreign, world.manifest, world.encoder)
    shutil.copy(Path(made.folder) / first.name, first)
    message = read_all()
    assert f"a file of {made.fingerprint} in a cache of {encoded.fingerprint}" in message
    assert "text_tokens: 48 there, 64 needed" in message
    shutil.rmtree(made.folder)
    first.write_bytes(whole)

    values = unsealed(json.loads(record.read_text()))
    record.write_bytes(sealed(values | {"entries": values["entries"] | {"more": 1}}))
    assert "its entries give" in refusal(config, world.manifest)
    record.write_bytes(sealed(values | {"version": 99}))
    assert "encoded.json: version" in refusal(config, world.manifest)
    record.write_bytes(sealed(values).replace(b'"samples"', b'"Samples"'))
    assert "damaged or changed by hand" in refusal(config, world.manifest)
    record.unlink()
    assert "not finished (it has no encoded.json)" in refusal(config, world.manifest)


@pytest.mark.nightly
def test_a_run_without_encoders_ends_with_the_same_adapter(tmp_path: Path) -> None:
    """Also with caption dropout and the base's own samples beside the data. In CI, batches are
    compared above, and experiments/reproduce/test_shapes.py trains without encoders."""
    (tmp_path / "prompts.txt").write_text("a red flat circle on teal\na blue flat cross on gray")

    def config(name: str, encoded: str) -> RunConfig:
        return make_config(
            "shapes",
            run={"folder": str(tmp_path / name)},
            data={
                "source": "shapes:bars",
                "shards": str(tmp_path / "shards"),
                "shapes_count": 4,
                "pixel_area": 1024,
                "bucket_multiple": 4,
                "rows_per_group": 2,
                "caption_dropout": 0.3,
                "prior": {"prompts": str(tmp_path / "prompts.txt"), "count": 2},
                "context_cache": encoded,
            },
            lora={"rank": 4, "alpha": 8},
            encoder={"cpus": 0.4},
            learner={"cpus": 0.4, "steps": 4, "global_batch": 3, "micro_batch": 3, "lr": 1e-3},
            method={"steps": 2, "ema_decay": 0.9},
            preview={"samples": 0},
            preflight={"mode": "off"},
            source="fused",
        )

    said: list[str] = []

    def show(phase: str, status: Event) -> None:
        said.append(str(status))

    lines = encode_contexts(config("unused", "auto"), show)
    assert lines[0].startswith("contexts of 6 samples are encoded: 3 files")
    assert "encoding contexts: 6/6" in said
    online, cached = (train(config(name, name), quiet) for name in ("off", "require"))
    assert online.problems == cached.problems == []
    assert Path(cached.lora).read_bytes() == Path(online.lora).read_bytes()
    assert min(ups(cached.lora).values()) > 0
    lanes = [
        {json.loads(line)["lane"] for line in timeline.read_text().splitlines()}
        for timeline in (Path(run.folder) / "timeline.jsonl" for run in (online, cached))
    ]
    assert "encoder-0" in lanes[0] and lanes[1] == lanes[0] - {"encoder-0"}
