"""Reference pictures: listed, checked, prepared, read back in the size that a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dopsd.config.context import MAX_REFERENCE_PIXELS
from dopsd.data.manifest import Manifest, PrepareSettings
from dopsd.data.pictures.images import decode_png
from dopsd.data.pictures.references import MAX_REFERENCES, check_references, sized
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.run import prepare
from dopsd.data.read import ReadSpec, RowGroups, read_micro_batch, samples_of
from dopsd.data.sample import Sample
from dopsd.data.sources.read import read_source
from dopsd.errors import DataError
from tests.data.samples import SMALL, picture, png, write_jsonl

SIZES = [(24, 40), (64, 48)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, Manifest]:
    """Samples with 0, 1 and 2 references, and every kind of bad one."""
    folder = tmp_path_factory.mktemp("references")
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    for number, size in enumerate(SIZES):
        picture(10 + number, *size).save(folder / f"r{number}.png")
    Image.new("L", (32, 32), 255).save(folder / "mask.png")
    picture(20, 3, 9).save(folder / "tiny.png")
    picture(21, 90, 10).save(folder / "narrow.png")
    (folder / "cut.png").write_bytes(png(picture(22))[:60])
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture(23, 24, 40).save(folder / "rotated.jpg", exif=rotated)
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "captions": {"short": "s", "long": "l"}},
        {
            "image": "1.png",
            "captions": {"short": "s"},
            "references": ["r1.png"],
            "mask": "mask.png",
        },
        {"image": "2.png", "captions": {"long": "l"}, "references": ["r0.png", "rotated.jpg"]},
    ]
    for name in ("tiny.png", "narrow.png", "cut.png", "gone.png"):
        rows.append({"image": "0.png", "id": name, "caption": "x", "references": ["r0.png", name]})
    many = ["r0.png"] * (MAX_REFERENCES + 1)
    rows.append({"image": "0.png", "id": "many", "caption": "x", "references": many})
    rows.append({"image": "0.png", "id": "odd", "caption": "x", "references": "r0.png"})
    source = write_jsonl(folder / "set.jsonl", rows)
    settings = PrepareSettings(**SMALL, rows_per_group=2, max_bad_fraction=0.8)
    manifest = prepare(str(source), str(folder / "shards"), settings)
    return folder, manifest


def read(folder: Path, manifest: Manifest, wanted: ReadSpec) -> dict[str, Sample]:
    groups = RowGroups(str(folder / "shards"), wanted)
    plan = Plan(manifest.row_groups, 0, 2, 2)
    batches = plan.micro_batches(0, plan.steps_per_epoch)
    found = [s for batch in batches for s in samples_of(read_micro_batch(batch, groups, 0))]
    return {sample.sample_id: sample for sample in found}


def test_a_bad_reference_quarantines_its_row_and_says_why(data: tuple[Path, Manifest]) -> None:
    _, manifest = data
    assert (manifest.samples, manifest.references) == (3, {"0": 1, "1": 1, "2": 1})
    assert manifest.masks == 1 and "masks: 1 of 3 samples (data.masks)" in manifest.summary_lines()
    assert "reference pictures of a sample: 0 (1), 1 (1), 2 (1)" in manifest.summary_lines()
    reasons = {entry.sample_id: entry.reason for entry in manifest.quarantined}
    bad = "bad reference: {}.png: "
    assert reasons["tiny.png"] == bad.format("tiny") + (
        "too small: 3x9 pixels, allowed: at least 4 a side"
    )
    assert reasons["narrow.png"] == bad.format("narrow") + (
        "too narrow: 90x10 pixels, allowed: 8 to 1 at most"
    )
    assert reasons["cut.png"].startswith(bad.format("cut") + "broken image")
    assert reasons["gone.png"].startswith(bad.format("gone") + "missing image")
    assert reasons["many"] == "too many references: 9, allowed: 8"
    assert reasons["odd"] == "references: 'r0.png', allowed: a list of paths"


def test_references_come_back_in_order_and_at_their_own_size(data: tuple[Path, Manifest]) -> None:
    folder, manifest = data
    samples = read(folder, manifest, ReadSpec(reference_pixels=1024**2, reference_multiple=8))
    assert samples["0"].references == ()
    (one,) = samples["1"].references
    assert np.array_equal(one, np.asarray(picture(11, *SIZES[1])))
    first, second = samples["2"].references
    assert np.array_equal(first, np.asarray(picture(10, *SIZES[0])))
    assert second.shape == (24, 40, 3), "upright"
    assert samples["2"].target.shape == (32, 32, 3)


def test_what_is_not_wanted_is_not_read(data: tuple[Path, Manifest]) -> None:
    folder, manifest = data
    plain = read(folder, manifest, ReadSpec(images=False))
    assert all(s.image is None and s.references == () for s in plain.values())
    groups = RowGroups(str(folder / "shards"), ReadSpec(images=False))
    assert not {"image", "references"} & groups.row(next(iter(_refs(manifest)))).keys()


def _refs(manifest: Manifest) -> Any:
    return (ref for b in Plan(manifest.row_groups, 0, 2, 2).micro_batches(0, 1) for ref in b.rows)


def test_data_with_samples_without_references_is_counted(data: tuple[Path, Manifest]) -> None:
    with pytest.raises(DataError, match="edit_reference, but 1 of 3 samples have no reference"):
        check_references(data[1])
    check_references(data[1].model_copy(update={"references": {"1": 2, "3": 1}}))


def test_references_count_in_the_fingerprint(data: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, _ = data
    prints = []
    for number, references in enumerate(([], ["r0.png"], ["r1.png"], ["r0.png", "r1.png"])):
        row = {"image": "0.png", "caption": "x", "references": references}
        source = write_jsonl(folder / f"{number}.jsonl", [row])
        shards = str(tmp_path / str(number))
        prints.append(prepare(str(source), shards, PrepareSettings(**SMALL)).fingerprint)
    assert len(set(prints)) == 4


def test_a_folder_holds_references_beside_an_image(tmp_path: Path) -> None:
    for name in ("a", "a.ref10", "a.ref2", "b", "c.ref1"):
        picture(0).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    rows = {row.sample_id: row for row in read_source(str(tmp_path)).rows if row.image}
    names = {key: [Path(place.path).name for place in row.references] for key, row in rows.items()}
    assert names == {"a": ["a.ref2.png", "a.ref10.png"], "b": [], "c.ref1": []}


def test_large_references_are_shrunk_in_the_shards(tmp_path: Path, ray_cluster: None) -> None:
    picture(0).save(tmp_path / "a.png")
    Image.new("RGB", (4096, 1100), (9, 8, 7)).save(tmp_path / "r.png")
    row = {"image": "a.png", "caption": "x", "references": ["r.png"]}
    source = write_jsonl(tmp_path / "set.jsonl", [row])
    prepare(str(source), str(tmp_path / "shards"), PrepareSettings(**SMALL))
    (file,) = (tmp_path / "shards").glob("*.parquet")
    (stored,) = pq.read_table(file)["references"][0].as_py()
    height, width, _ = decode_png(stored).shape
    assert MAX_REFERENCE_PIXELS * 0.99 < width * height <= MAX_REFERENCE_PIXELS
    assert width / height == pytest.approx(4096 / 1100, rel=0.01)


@pytest.mark.parametrize(
    ("size", "limit", "multiple", "expected"),
    [
        ((100, 70), 1024**2, 16, (96, 64)),
        ((64, 64), 1024**2, 16, (64, 64)),
        ((2048, 1024), 1024**2, 16, (1440, 720)),
        ((800, 100), 64**2, 16, (176, 16)),
        ((17, 130), 16**2 * 8, 16, (16, 112)),
    ],
)
def test_the_size_a_model_sees(
    size: tuple[int, int], limit: int, multiple: int, expected: tuple[int, int]
) -> None:
    pixels = sized(picture(0, *size), limit, multiple)
    assert pixels.shape == (expected[1], expected[0], 3) and pixels.dtype == np.uint8


def test_it_is_the_size_that_the_stock_pipeline_gives() -> None:
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    processor = Flux2ImageProcessor(vae_scale_factor=16)
    for size in ((1400, 900), (333, 517), (2000, 1999)):
        image = picture(1, *size)
        ours = sized(image, 1024**2, 16)
        theirs = Flux2ImageProcessor._resize_if_exceeds_area(image)
        width, height = (side // 16 * 16 for side in theirs.size)
        stock = processor.preprocess(theirs, height=height, width=width, resize_mode="crop")
        assert np.array_equal(
            ours, ((stock[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        )
