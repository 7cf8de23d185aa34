"""What a library holds and takes, and what is refused before anything starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dopsd.cli.main import main
from dopsd.config import RunConfig, load_config
from dopsd.data.manifest import Manifest
from dopsd.data.sources.listed import Listed
from dopsd.errors import ConfigError, DataError, DopsdError
from dopsd.library.catalogue.catalogue import Catalogue, catalogue_of, prepared_samples
from dopsd.library.catalogue.recipe import Fingerprints, Recipes
from tests.data.planning.test_concepts import prepared
from tests.data.samples import picture

SHAPES = ["source=fused", "max_policy_lag=0", "learner.workers=1", "data.shards=shards"]


def config(*overrides: str) -> RunConfig:
    return load_config("shapes", [*SHAPES, *overrides])


def listed(sizes: dict[str, int], keys: tuple[str, ...] = ("caption",)) -> list[Listed]:
    return [(name, keys, "") for name, count in sizes.items() for _ in range(count)]


def made(samples: Iterable[Listed], *overrides: str) -> Catalogue:
    run = config(*overrides)
    return catalogue_of(run, samples, Recipes(run))


def test_pictures_captions_steps_and_reasons_of_skips() -> None:
    samples = [
        *listed({"few": 2, "many": 9, "huge": 100, "": 4}),
        *listed({"many": 3}, ("short", "long")),
        ("few", (), "missing caption: no few/3.txt"),
        ("lost", (), "missing caption: no lost/1.txt"),
        ("lost", (), "broken image: truncated"),
    ]
    catalogue = made(samples)
    many = catalogue.concepts["many"]
    assert (many.pictures, many.captions, many.steps, many.skip) == (12, 15, 240, "")
    assert catalogue.concepts["huge"].steps == 600 and catalogue.unnamed == 4
    assert catalogue.skipped == {
        "few": "too few pictures: 2, library.min_images: 3, beside 1 left out (1 x missing "
        "caption)",
        "lost": "too few pictures: 0, library.min_images: 3, beside 2 left out (1 x missing "
        "caption; 1 x broken image)",
    }
    asked = made(samples, "data.caption_keys=[caption]")
    assert asked.skipped["many"] == "no caption: 3 of 12 pictures have none of data.caption_keys"
    assert [c.name for c in made(samples, "data.concepts=[huge]").trained] == ["huge"]


@pytest.mark.parametrize(
    ("samples", "overrides", "line"),
    [
        (listed({"": 9}), [], "data.source: its pictures have no concepts, allowed: a folder for"),
        (listed({"Rex": 5, "rex ": 5}), [], "concepts 'Rex' and 'rex ' differ in case, blanks or"),
        (
            listed({f"c{n:05}": 1 for n in range(10_000)}),
            [],
            "nothing to train: all 10000 concepts are skipped (10000 x too few pictures, e.g. "
            "'c00000': too few pictures: 1, library.min_images: 3)",
        ),
        (
            listed({"pets/rex": 5}),
            ["library.overrides={styles/*: {learner.lr: 1e-5}}"],
            "library.overrides: 'styles/*' matches none of 1 concepts, such as 'pets/rex'",
        ),
        (
            listed({"pets/rex": 5}),
            ["data.concepts=[pets/rax]"],
            "data.concepts: 'pets/rax' is no concept of the data (did you mean 'pets/rex'?)",
        ),
    ],
)
def test_data_that_no_library_can_have_is_refused(samples, overrides, line) -> None:
    with pytest.raises(DopsdError) as error:
        made(samples, *overrides)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "source=disaggregated max_policy_lag=1",
            "max_policy_lag: 1 in a library, allowed: 0 (each concept is strictly on-policy)",
        ),
        (
            "source=disaggregated transport=rdt",
            "transport: rdt in a library with source: disaggregated, allowed: object_store",
        ),
        (
            "source=disaggregated method.objective=sft_on_teacher",
            "method.objective: sft_on_teacher in a library with source: disaggregated, allowed: ",
        ),
        ("library.in_flight=0", "library.in_flight: '0', allowed: 'auto' or at least 1"),
        ("adapters=lora+modules", "source: fused with adapters: lora+modules, allowed: disagg"),
        ("learner.workers=2", "learner.workers: 2 in a library, allowed: 1 (library.workers"),
        ("learner.deepspeed=zero3", "learner.deepspeed: zero3 in a library, allowed: ZeRO stage 1"),
        ("data.shards=null", "data.shards: missing in a library"),
        ("data.context_cache=off", "data.context_cache: off in a library, allowed: auto"),
        (
            "library.steps={min: 9, max: 8}",
            "library.steps.min: 9, allowed: at most library.steps.m",
        ),
        (
            "library.overrides={a: {lora.rank: 8}}",
            "library.overrides: lora.rank for 'a', allowed: ",
        ),
        ("library.overrides={a: {learner.steps: 8}}", "library.overrides: learner.steps for"),
        (
            "library.overrides={a: {learner.lr: -1}}",
            "library.overrides, 'a': learner.lr: -1, allowed: greater than 0",
        ),
        (
            "library.overrides={a: {learner.warmup_steps: 121}}",
            "learner.warmup_steps: 121, allowed: at most library.steps.min (120)",
        ),
        ("learner.compile=true", "learner.compile: True in a library, allowed: False (no promise"),
        ("model.compile=true", "model.compile: True in a library, allowed: False (no promise"),
        (
            "library.in_flight=3",
            "library.in_flight: 3 in a library with source: fused, allowed: auto (a worker",
        ),
        ("library.keep=[sheet]", "library.keep: ['sheet'], allowed: lora, and beside it teacher,"),
        ("library.keep=[lora, lora]", "library.keep: ['lora', 'lora'], allowed: lora, and beside"),
        ("library.max_parked=2", "library.max_parked: 2, allowed: at most 1"),
    ],
)
def test_a_config_that_no_library_can_have_is_refused(override: str, line: str) -> None:
    words = override.split() if override.startswith("source=") else [override]
    with pytest.raises(ConfigError) as error:
        Recipes(config(*words))
    assert str(error.value).startswith(line)


def test_a_concept_has_its_own_keys_and_the_last_pattern_counts() -> None:
    recipes = Recipes(
        config(
            "library.overrides={'*': {learner.lr: 1e-3}, 'styles/*': {learner.lr: 5e-5, "
            "library.steps.per_image: 10}}"
        )
    )
    style, pet = recipes.config_of("styles/ink", 150), recipes.config_of("pets/rex", 240)
    assert (style.learner.lr, pet.learner.lr) == (5e-5, 1e-3)
    assert (style.learner.steps, style.data.concepts) == (150, ["styles/ink"])
    assert (recipes.steps("styles/ink", 15), recipes.steps("pets/rex", 15)) == (150, 300)


def with_fingerprints(sizes: dict[str, int]) -> Manifest:
    manifest, _ = prepared(sizes)
    own = {name: f"{name} {count}" for name, count in sizes.items()}
    return manifest.model_copy(update={"concept_fingerprints": own})


def test_a_fingerprint_changes_with_its_own_data_and_recipe_alone() -> None:
    def prints(sizes: dict[str, int], *overrides: str, steps: int = 120) -> dict[str, str]:
        recipes = Recipes(config(*overrides))
        of = Fingerprints(recipes, with_fingerprints(sizes))
        return {name: of.of(name, steps) for name in sizes}

    before = prints({"a": 5, "b": 6})
    assert len(set(before.values())) == 2
    assert prints({"a": 5, "b": 7, "c": 9})["a"] == before["a"]
    assert prints({"a": 5, "b": 7})["b"] != before["b"]
    same = ("learner.steps=99", "library.retries=7", "run.name=other", "preview.samples=0")
    assert prints({"a": 5, "b": 6}, *same, "library.workers=3", "timeouts.step=5") == before
    for other in ("learner.lr=1e-3", "run.seed=1", "lora.rank=8", "method.steps=2"):
        assert prints({"a": 5, "b": 6}, other)["a"] != before["a"]
    assert prints({"a": 5, "b": 6}, steps=121)["a"] != before["a"]
    init = prints({"a": 5, "b": 6}, "lora.init=/a", f"lora.init_sha256='{'1' * 64}'")
    assert init["a"] != before["a"] and init["b"] != before["b"]
    other = prints({"a": 5, "b": 6}, "lora.init=/a", f"lora.init_sha256='{'2' * 64}'")
    assert other["a"] != init["a"]
    # Files with a known digest are not read again, whether they are there or not.
    merged = "model.merge=[/gone]", f"model.merge_sha256=['{'3' * 64}']"
    assert prints({"a": 5, "b": 6}, *merged)["a"] != before["a"]
    one = prints({"a": 5, "b": 6}, "library.overrides={a: {learner.lr: 1e-3}}")
    assert one["a"] != before["a"] and one["b"] == before["b"]


def test_what_came_to_decide_later_is_in_a_fingerprint_where_it_is_unusual() -> None:
    manifest = with_fingerprints({"a": 5})
    masked = manifest.model_copy(update={"masks": 2})

    def of(data: Manifest, *overrides: str) -> str:
        return Fingerprints(Recipes(config(*overrides)), data).of("a", 120)

    before = of(manifest)
    assert of(manifest, "data.masks=false") == of(masked) == before, "nothing is left unheeded"
    assert of(masked, "data.masks=false") != before
    assert of(manifest, "model.attention=native") == before, "nobody else infers"
    pools = of(manifest, "source=disaggregated")
    assert of(manifest, "source=disaggregated", "model.attention=native") != pools


def test_ten_thousand_concepts_are_planned_in_seconds() -> None:
    sizes = {f"pets/{number:05}": 4 + number % 20 for number in range(10_000)}
    manifest = with_fingerprints(sizes)
    keys = ({"keys": ["caption"], "samples": manifest.samples},)
    manifest = Manifest.model_validate(manifest.model_dump() | {"caption_sets": keys})
    began = time.perf_counter()
    recipes = Recipes(run := config("library.overrides={pets/0*: {learner.lr: 1e-3}}"))
    catalogue = catalogue_of(run, prepared_samples(manifest, "unread"), recipes)
    prints = Fingerprints(recipes, manifest)
    assert len({prints.of(c.name, c.steps) for c in catalogue.trained}) == 10_000
    assert time.perf_counter() - began < 30, "about 3 s on an idle core"


def write_source(folder: Path, **rows: Any) -> Path:
    folder.mkdir()
    lines = []
    for concept, count in rows.items():
        for _ in range(count):
            name = f"{len(lines)}.png"
            picture(len(lines)).save(folder / name)
            lines.append(json.dumps({"image": name, "caption": "a cat", "concept": concept}))
    (folder / "all.jsonl").write_text("\n".join(lines))
    return folder / "all.jsonl"


def test_the_command_plans_a_source_that_is_not_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", rex=4, aya=3, one=1)
    words = [*SHAPES, f"data.source={source}", f"data.shards={tmp_path}/shards", "device=cpu"]
    assert main(["library", "plan", "shapes", *words]) == 0
    out = capsys.readouterr().out
    assert "library: 2 concepts to train, 7 pictures, 7 captions; 1 skipped" in out
    assert "  1 x too few pictures, e.g. 'one': too few pictures: 1, library.min_images: 3" in out
    assert "\n  rex, 4, 4, 120\n" in out and "on CPUs, of which nobody knows the pace" in out
    assert main(["library", "plan", "shapes", *words, "device=auto", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == 240 and record["train_hours"] > 0 and record["adapters_bytes"] > 0
    assert main(["library", "plan", "shapes", *words, "data.concepts=[rax]"]) == 1
    assert "did you mean 'rex'?" in capsys.readouterr().err
    assert main(["library", "status", str(tmp_path)]) == 1
    assert "holds no library" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_what_may_be_wrong_with_the_data_is_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        from dopsd.library.catalogue.catalogue import known_catalogue

        run = config(f"data.source={tmp_path}/gone", f"data.shards={tmp_path}/shards")
        known_catalogue(run, Recipes(run))
