"""Encoding by actors and reading without any, on S3; going on after a failure."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from dopsd import __version__
from dopsd.data.context_cache.files import ContextCache, cache_file, differences, load_record
from dopsd.data.context_cache.writer import _versions, write_context_cache
from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.run import prepare
from dopsd.data.read import ReadSpec
from dopsd.data.stream.block import load_encoded
from dopsd.data.stream.pipeline import encoded_stream
from dopsd.errors import DataError, WorkerError
from dopsd.files import storage
from tests.data.encoders import BrokenFactory, PixelFactory
from tests.data.samples import SMALL, write_folder
from tests.helpers.titles import titled

READ_SPEC = ReadSpec(caption_dropout=0.3)
ENTRIES = {"context": "pixels", "empty_prompt": True}


class Failing:
    """Its own factory, an encoder that always fails."""

    def __call__(self) -> Failing:
        return self

    def encode(self, samples: Any) -> Any:
        raise RuntimeError("out of patience")


@pytest.fixture(scope="module")
def data(
    bucket: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Manifest, str]:
    source = write_folder(tmp_path_factory.mktemp("source"), 5, ((32, 32), (40, 28)))
    settings = PrepareSettings(**SMALL, rows_per_group=2, groups_per_shard=2)
    shards = f"{bucket}/encoded/shards"
    return prepare(str(source), shards, settings), shards


def test_versions_are_told_where_dopsd_is_only_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata(name: str) -> str:
        if name == "dopsd":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("dopsd.data.context_cache.writer.version", metadata)
    assert _versions() == {
        "dopsd": __version__,
        **{name: version(name) for name in ("torch", "transformers", "diffusers")},
    }


def run(data: tuple[Manifest, str], factory: Any, seen: list[Any]) -> Any:
    return write_context_cache(
        data[1],
        f"{data[1]}/encoded-123",
        data[0],
        READ_SPEC,
        "123",
        ENTRIES,
        factory,
        num_cpus=0.25,
        progress=lambda *status: seen.append(status),
    )


@pytest.mark.integration
def test_on_s3_after_a_failure_read_as_the_encoders_encode(
    data: tuple[Manifest, str], tmp_path: Path
) -> None:
    manifest, shards = data
    folder = f"{shards}/encoded-123"
    with pytest.raises(WorkerError, match="encoder: RuntimeError: out of patience"):
        run(data, Failing(), [])
    deadline = time.monotonic() + 30
    while titled("_EncodeGroup"):
        assert time.monotonic() < deadline, "encoders outlive the failure"
        time.sleep(0.1)
    left = [name for name, _ in storage.list_files(folder)]
    assert left == [".dopsd.json"], "a file is there whole or not at all"
    with pytest.raises(DataError, match=r"not finished \(it has no encoded.json\)"):
        load_record(folder)

    seen: list[Any] = []
    record = run(data, PixelFactory(tmp_path), seen)
    assert load_record(folder) == record
    assert record.files.keys() == {cache_file(g.file, g.row_group) for g in manifest.row_groups}
    assert seen[0] == ("encoding contexts", 0, 5) and seen[-1] == ("encoding contexts", 5, 5)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)

    lost = cache_file(manifest.row_groups[1].file, manifest.row_groups[1].row_group)
    storage.remove(f"{folder}/{lost}")
    storage.remove(f"{folder}/encoded.json")
    seen.clear()
    assert run(data, PixelFactory(tmp_path), seen) == record
    assert seen[0][1] == 5 - manifest.row_groups[1].rows, "what is there is kept"
    started = len(list(tmp_path.iterdir()))
    assert run(data, BrokenFactory(), []) == record, "nothing left to do: no encoder starts"

    plan = Plan(manifest.row_groups, 3, 2, 2)
    span = plan, 0, 2 * plan.steps_per_epoch
    options: Any = {"shards": shards, "read_spec": READ_SPEC, "num_cpus": 0.25}
    options["encoder_factory"] = PixelFactory(tmp_path)
    cache = ContextCache(folder, "123", ENTRIES, teacher=True, latents=False, digest="")
    cached = list(encoded_stream(*span, context_cache=cache, **options))
    assert len(list(tmp_path.iterdir())) == started, "no encoder was started"
    online = list(encoded_stream(*span, **options))
    prompts = set()
    for (*key, one), (*other_key, other) in zip(cached, online, strict=True):
        found, made = load_encoded(ray.get(one)), load_encoded(ray.get(other))
        assert key == other_key and found.info == made.info
        prompts |= set(found.info.prompts)
        assert torch.equal(found.student.tensors["lengths"], made.student.tensors["lengths"])
        assert torch.equal(found.teacher.tensors["pixels"], made.teacher.tensors["pixels"])
    assert "" in prompts and len(prompts) > 2

    mixed = replace(cache, fingerprint="456", entries={"context": "other"})
    stream = encoded_stream(*span, context_cache=mixed, **options)
    with pytest.raises(DataError, match='of 123 in a cache of 456: context: "pixels" there'):
        next(stream)


def test_differences() -> None:
    made = {"keys": ["a", "b"], "latents": True, "dtype": "float32"}
    assert differences(made, {"keys": ["b"], "latents": False}) == []
    assert differences({"latents": False}, {"latents": True, "dtype": "float32"}) == [
        "latents: false there, true needed",
        'dtype: none there, "float32" needed',
    ]
    assert differences(made, {"keys": ["a", "c"]}) == ['keys: ["a", "b"] there, ["a", "c"] needed']
