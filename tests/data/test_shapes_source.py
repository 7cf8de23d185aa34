"""The source `shapes:...`: what it is called, what it holds, and what it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.config import load_config
from dopsd.data.run_data import source_name
from dopsd.data.shapes_source import check_shapes_source, listed_shapes, sprite_of, write_shapes
from dopsd.driver.setup.checks import refuse_missing_source
from dopsd.errors import ConfigError
from dopsd.shapes.sprites import Sprite


def config(source: str, *overrides: str):
    return load_config("shapes", [f"data.source={source}", "data.shapes_count=3", *overrides])


@pytest.mark.parametrize("source", ["shapes:ring", "shapes:sprites#5"])
def test_what_is_listed_is_what_is_drawn(source: str, tmp_path: Path) -> None:
    run = config(source, "data.shapes_concepts=4")
    table = Path(write_shapes(run, source, tmp_path)).read_text()
    rows = [json.loads(line) for line in table.splitlines()]
    drawn = [(row["concept"], tuple(row["captions"]), "") for row in rows]
    assert list(listed_shapes(run, source)) == drawn
    assert len(drawn) == (12 if "sprites" in source else 3)
    assert all((tmp_path / row["image"]).is_file() for row in rows)


def test_its_name_tells_all_that_decides_its_rows() -> None:
    seeds = {source_name(config("shapes:sprites#5", f"run.seed={seed}")) for seed in (0, 1)}
    assert seeds == {"shapes:sprites#5 concepts=24 count=3"}
    other = source_name(config("shapes:sprites#5", "data.shapes_concepts=25"))
    assert other == "shapes:sprites#5 concepts=25 count=3"
    assert source_name(config("shapes:ring")) == "shapes:ring count=3 seed=0"


@pytest.mark.parametrize(
    "name",
    [
        "sprites",
        "sprites#",
        "sprites#-1",
        "sprites#1.5",
        "sprites#01",
        "sprites#٣",
        "sprites#9 ",
        "x",
    ],
)
def test_other_names_are_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    run = config(f'"shapes:{name}"', f"run.folder={tmp_path}/run")
    with pytest.raises(ConfigError) as refused:
        refuse_missing_source(run)
    assert str(refused.value) == (
        f"data.source: 'shapes:{name}', allowed: shapes:bars, shapes:ring, "
        "shapes:sprites#SEED (a whole number)"
    )


def test_a_concept_is_scored_by_its_sprite() -> None:
    check_shapes_source("shapes:sprites#5")
    sprite = sprite_of("shapes:sprites#5", "sprite-0003")
    assert isinstance(sprite, Sprite) and (sprite.seed, sprite.number) == (5, 3)
    assert sprite_of("shapes:ring", "ring") is None


def test_a_library_of_sprites_is_planned_without_drawing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "source=fused",
        "max_policy_lag=0",
        "learner.workers=1",
        "data.source=shapes:sprites#1",
    ]
    words += ["data.shapes_concepts=200", f"data.shards={tmp_path}/shards"]
    assert main(["library", "plan", "shapes", *words]) == 0
    out = capsys.readouterr().out
    assert "library: 200 concepts to train, 2400 pictures, 9600 captions; 0 skipped" in out
    assert "\n  sprite-0019, 12, 48, 240\n  and 180 more" in out
    assert not (tmp_path / "shards").exists()
