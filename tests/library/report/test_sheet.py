"""Thumbnails are small whatever they show; a sheet that cannot be drawn is told and no more."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dopsd.data.context_cache.files import ContextCache
from dopsd.data.planning.concepts import concept_groups
from dopsd.errors import DataError
from dopsd.library.report.sheet import THUMBNAIL_BYTES, SheetSampler, thumbnail
from dopsd.library.workers.jobs import Job
from dopsd.library.workers.worker import LibraryWorker
from dopsd.shapes import world
from dopsd.shapes.grid import to_image
from dopsd.shapes.sprites import Sprite
from tests.data.samples import write_shards
from tests.helpers.tiny import make_config, random_image


@pytest.mark.parametrize("size", [(32, 32), (1024, 1024), (2048, 256), (8, 64)])
def test_a_thumbnail_is_small_and_holds_three_pictures(size: tuple[int, int]) -> None:
    row = tuple(Image.fromarray(random_image(*size, number)) for number in range(3))
    payload = thumbnail(row)
    assert len(payload) <= THUMBNAIL_BYTES
    with Image.open(io.BytesIO(payload)) as image:
        width, height = image.width / 3, image.height
        assert max(width, height) <= 96
        assert width / height == pytest.approx(size[1] / size[0], rel=0.1)


def test_a_sheet_that_cannot_be_drawn_is_told() -> None:
    class NoDecoder:
        def draw(self, groups: object, device: torch.device) -> None:
            raise RuntimeError("no decoder:\n here")

    config = make_config("base", data={"shards": "unread"})
    worker = LibraryWorker(config, {}, ContextCache("", "", {}, True, False, ""), "cpu")
    job = Job("a", config, (), 1.0, {}, 0, {}, [])
    assert worker._drawn(job) == (None, ""), "none is kept"
    worker._sheets = NoDecoder()  # type: ignore[assignment]
    assert worker._drawn(job) == (None, "no decoder: here")
    again = Job("a", config, (), 1.0, {}, 0, {}, [], draw=False)
    assert worker._drawn(again) == (
        None,
        "a worker died of this concept, perhaps while it drew",
    )


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ("pppppp", None),
        ("ttptpp", {"cat2", "cat4", "cat5"}),
        ("tttpt", {"cat3"}),
        ("ttt", set()),
    ],
)
def test_a_sheet_is_of_rows_that_have_a_picture(
    kinds: str, found: set[str] | None, tmp_path: Path
) -> None:
    groups = concept_groups(write_shards(tmp_path / "shards", {"cat": kinds}))["cat"]
    data = {"shards": str(tmp_path / "shards")}
    config = make_config("base", data=data, preview={"samples": 3})
    sampler = SheetSampler(config, ContextCache("", "", {}, True, False, ""), None)  # type: ignore[arg-type]
    sampler._rows = SimpleNamespace(sample=lambda *_: SimpleNamespace(student=None))  # type: ignore[assignment]
    taken = [sample.sample_id for sample, _ in sampler._chosen(groups)]
    if found is None:
        order = [f"cat{ref.row_group}" for group in groups for ref in group.refs]
        assert taken == order[::2], "evenly"
        return
    assert len(taken) == len(found) and {*taken} == found
    if not found:
        sampler.student = SimpleNamespace(transformer=torch.nn.Module())  # type: ignore[assignment]
        sampler._pipeline = SimpleNamespace(vae=torch.nn.Module())
        with pytest.raises(DataError, match="no pictures: its samples are texts alone"):
            sampler.draw(groups, torch.device("cpu"))


def test_pictures_of_a_sprite_are_scored_by_its_oracle_wherever_it_is_drawn() -> None:
    config = make_config("base", data={"source": "shapes:sprites#0", "shards": "unread"})
    one, other = (Sprite.of(0, number) for number in (0, 1))
    # Two pictures that show it, elsewhere than the targets do, and one of another sprite.
    targets, students = ([to_image(p) for p in world.render(list(one.scenes(3)))] for _ in range(2))
    students = [*students[1:], to_image(world.render(list(other.scenes(1)))[0])]
    bases = [to_image(picture) for picture in world.render(list(other.scenes(3)))]
    sampler = SheetSampler(config, ContextCache("", "", {}, True, False, ""), None)  # type: ignore[arg-type]
    rows = list(zip(targets, bases, students))
    scores = sampler.scores(rows, one.name, torch.device("cpu"))
    assert scores.metric == "sprite" and scores.sharpness is not None
    assert (scores.base_drawn, scores.drawn) == (0, pytest.approx(2 / 3))
    assert 0 < scores.student < scores.base / 2
