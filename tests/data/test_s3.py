"""Source, shards and stream on S3, against a server on this machine."""

from __future__ import annotations

import json

import pytest
import ray

from dopsd.data.manifest import PrepareSettings, load_manifest
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.run import prepare
from dopsd.data.read import ReadSpec
from dopsd.data.stream.block import load_encoded
from dopsd.data.stream.pipeline import encoded_stream
from dopsd.errors import DataError
from dopsd.files import storage
from tests.data.encoders import PixelFactory
from tests.data.samples import SMALL, picture, png

SETTINGS = PrepareSettings(**SMALL, rows_per_group=2, groups_per_shard=2, max_bad_fraction=0.5)


@pytest.fixture(scope="module")
def source(bucket: str) -> str:
    """A folder on S3: five pictures, one of them broken, in a concept's folder."""
    folder = f"{bucket}/source"
    for number in range(5):
        data = png(picture(number)) if number else b"broken"
        storage.write_bytes(f"{folder}/dog/{number}.png", data)
        storage.write_bytes(f"{folder}/dog/{number}.txt", f"dog {number}".encode())
    rows = [{"image": f"dog/{number}.png", "caption": "x"} for number in (1, 2, 9)]
    lines = "\n".join(json.dumps(row) for row in rows)
    storage.write_bytes(f"{folder}/set.jsonl", lines.encode())
    return folder


def test_prepare_and_stream(ray_cluster: None, bucket: str, source: str) -> None:
    shards = f"{bucket}/shards"
    manifest = prepare(source, shards, SETTINGS)
    assert load_manifest(shards) == manifest
    assert manifest.concepts == {"dog": 4}
    (bad,) = manifest.quarantined
    assert bad.where == "dog/0.png" and bad.reason.startswith("broken image")
    with pytest.raises(DataError, match="holds a prepared data set already"):
        prepare(source, shards, SETTINGS)
    again = prepare(source, shards, SETTINGS, overwrite=True)
    # The new shards stand beside the old ones until those go.
    assert list(again.files) == ["shard-00000.1.parquet"] != list(manifest.files)
    assert [again.fingerprint, *again.files.values()] == [
        manifest.fingerprint,
        *manifest.files.values(),
    ]
    assert {name for name in storage.names(shards) if name.endswith(".parquet")} == set(again.files)
    manifest = again

    plan = Plan(manifest.row_groups, 0, 2, 2)
    stream = encoded_stream(
        plan,
        0,
        plan.steps_per_epoch,
        shards=shards,
        read_spec=ReadSpec(),
        encoder_factory=PixelFactory(),
        num_cpus=0.25,
    )
    infos = [load_encoded(ray.get(ref)).info for _, _, ref in stream]
    prompts = {prompt for info in infos for prompt in info.prompts}
    assert prompts == {"dog 1", "dog 2", "dog 3", "dog 4"}


def test_jsonl_beside_its_images(ray_cluster: None, bucket: str, source: str) -> None:
    manifest = prepare(f"{source}/set.jsonl", f"{bucket}/shards-jsonl", SETTINGS)
    assert manifest.samples == 2
    assert [entry.where for entry in manifest.quarantined] == ["set.jsonl:3"]
    assert manifest.quarantined[0].reason.startswith("missing image: no such file s3://")


def test_a_folder_that_is_not_there(bucket: str) -> None:
    with pytest.raises(DataError, match=r"no such folder, \.jsonl"):
        prepare(f"{bucket}/nowhere", f"{bucket}/x", SETTINGS)
