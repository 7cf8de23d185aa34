"""Prompts: files, the shapes world, data sets; every bad line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dopsd.data.manifest import PrepareSettings, save_manifest
from dopsd.data.prepare.run import prepare
from dopsd.errors import ConfigError, DataError, ModelError
from dopsd.evaluation.concept_prompts import (
    REFERENCES,
    Concept,
    concepts_of,
    from_templates,
    write_references,
)
from dopsd.evaluation.dataset_prompts import dataset_prompts
from dopsd.evaluation.prompts import PRIOR, EvalPrompt, read_prompts, shapes_prompts, write_prompts
from tests.data.samples import write_shards
from tests.helpers.tiny import random_image


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog  \n", encoding="utf-8")
    assert read_prompts(str(path)) == (EvalPrompt("a cat"), EvalPrompt("a dog"))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_only_line_feeds_end_a_prompt(tmp_path, name):
    text = "a cat\u2028a dog\u2029a bird\x85a fish"
    path = str(tmp_path / name)
    if name == "x.txt":
        Path(path).write_bytes(f"{text}\r\na cow\r\n".encode())
    else:
        write_prompts(path, [EvalPrompt(text), EvalPrompt("a cow")])
    assert [prompt.text for prompt in read_prompts(path)] == [text, "a cow"]


def test_prompts_are_read_back_as_written(tmp_path):
    prompts = (
        EvalPrompt("[V] cat", "cat", references=(f"{tmp_path}/references/1.png",), seeds=(3, 4)),
        EvalPrompt("a red thing", PRIOR, True, expected={"fill": "red"}),
        EvalPrompt("a [V] thing", "bars", expected={"pattern": "bars"}, concept="pattern"),
    )
    path = str(tmp_path / "prompts.jsonl")
    write_prompts(path, prompts)
    assert '"references/1.png"' in Path(path).read_text()
    assert read_prompts(path) == prompts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x.jsonl:2: not JSON"),
        ("[]", r"x.jsonl:2: found list, allowed: a valid dictionary"),
        ('{"prompt": ""}', r"x.jsonl:2: allowed"),
        ('{"prompt": "a", "sed": 1}', r"x.jsonl:2: sed: unknown, allowed: prompt, group"),
        ('{"prompt": "a", "seeds": [-1]}', r"seeds: \[-1\], allowed: a list of whole numbers"),
        ('{"prompt": "a", "seeds": []}', r"seeds: \[\], allowed"),
        ('{"prompt": "a", "references": "x.png"}', r"references: .* allowed: a list of paths"),
        ('{"prompt": "a", "expected": {"hue": "red"}}', r"jsonl:2: expected: 'hue', allowed: fill"),
        ('{"prompt": "a", "expected": {"fill": "pink"}}', r"expected: fill: 'pink', allowed: red,"),
        ('{"prompt": "a", "expected": {"fill": ["red"]}}', r"fill: \['red'\], allowed: red, green"),
        ('{"prompt": "a", "concept": "fill"}', r"concept: 'fill', allowed: a key of expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "no such file"),
        ("empty.txt", b" \n\n", "no prompt in it"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("prompts.csv", b"a", "allowed: .txt, .jsonl, prepared shards, shapes:CONCEPT"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(str(tmp_path / name))


def test_names_tell_texts_and_seeds_apart():
    long = "a very long prompt / with: signs " * 5
    names = {EvalPrompt(text).image_name(seed) for text in (long, long + "!") for seed in (0, 1)}
    assert len(names) == 4
    assert all("/" not in name and len(name) < 80 for name in names)


def test_shapes_prompts_are_distinct_and_know_what_they_ask_for():
    prompts = shapes_prompts("bars", 20)
    assert len({(p.text, p.group) for p in prompts}) == len(prompts) == 40
    for prompt in prompts:
        if prompt.prior:
            assert prompt.group == PRIOR and "[V]" not in prompt.text and prompt.concept is None
            assert all(value in prompt.text for value in prompt.expected.values())
        else:
            assert prompt.concept == "pattern" and prompt.expected["pattern"] == "bars"
            assert "[V]" in prompt.text
    with pytest.raises(ConfigError, match="shapes:stars: unknown concept, allowed: bars, ring"):
        shapes_prompts("stars", 3)


@pytest.mark.parametrize(
    ("concept", "subject"),
    [
        (Concept("cat", "a photo of [V] cat on a sofa", ()), "[V] cat"),
        (Concept("cat", "[V] asleep", ()), "[V]"),
        (Concept("", "[V] asleep", ()), "[V]"),
        (Concept("cat", "the cat sleeps", ()), "cat"),
    ],
)
def test_the_subject_is_how_the_captions_name_it(concept, subject):
    assert concept.subject == subject
    texts = from_templates(concept)
    assert concept.caption in texts[0]
    assert len(set(texts)) == 5 and all(subject in text for text in texts[1:])
    assert texts == from_templates(concept)


@pytest.fixture(scope="session")
def shards(ray_cluster, tmp_path_factory):
    """Two concepts: five cats and one dog."""
    folder = tmp_path_factory.mktemp("concepts")
    for name, count in (("cat", 5), ("dog", 1)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(count):
            stem = folder / "images" / name / f"{number}"
            Image.fromarray(random_image(32, 32, 10 * len(name) + number)).save(f"{stem}.png")
            stem.with_suffix(".txt").write_text(f"a photo of [V] {name} number {number}")
    settings = PrepareSettings(pixel_area=1024, bucket_multiple=4)
    prepare(str(folder / "images"), str(folder / "shards"), settings, lambda *_: None)
    return str(folder / "shards")


def test_a_data_set_gives_one_rewrite_and_four_scenes_per_concept(shards, tmp_path):
    out = str(tmp_path / "out")
    prompts = dataset_prompts(shards, out, None, lambda status: None)
    assert [prompt.group for prompt in prompts] == ["cat"] * 5 + ["dog"] * 5
    assert len(prompts[0].references) == 4 and len(prompts[5].references) == 1
    assert "[V] dog number 0" in prompts[5].text
    with Image.open(prompts[5].references[0]) as image:
        assert image.size == (32, 32)
    assert dataset_prompts(shards, out, None, lambda status: None) == prompts


def test_each_sample_may_have_its_own_and_shared_prompts_are_drawn_once(shards, tmp_path):
    prompts = dataset_prompts(shards, str(tmp_path), None, lambda status: None, each_sample=True)
    assert len({(prompt.group, prompt.text) for prompt in prompts}) == len(prompts)
    rewrites = [prompt for prompt in prompts if "number" in prompt.text]
    assert [prompt.group for prompt in rewrites] == ["cat"] * 5 + ["dog"]
    assert all(len(prompt.references) == 1 for prompt in rewrites)
    pairs = sum(len(prompt.references) for prompt in prompts)
    assert pairs == 6 * 5, "every sample is held against one rewrite and four scenes"


def test_only_row_groups_that_a_concept_needs_are_read(ray_cluster, tmp_path):
    """The manifest says which rows are whose; a library is larger than what is drawn of it."""
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for number in range(12):
        stem = tmp_path / "images" / "cat" / f"{number}"
        Image.fromarray(random_image(32, 32, number)).save(f"{stem}.png")
        stem.with_suffix(".txt").write_text(f"a photo of [V] cat number {number}")
    settings = PrepareSettings(
        pixel_area=1024, bucket_multiple=4, rows_per_group=2, groups_per_shard=1
    )
    shards = tmp_path / "shards"
    manifest = prepare(str(tmp_path / "images"), str(shards), settings)
    assert len(manifest.row_groups) == 6
    concepts = concepts_of(str(shards), manifest)
    assert [len(set(each.images)) for each in concepts] == [REFERENCES]
    for group in manifest.row_groups[2:]:
        (shards / group.file).unlink()
    assert concepts_of(str(shards), manifest) == concepts
    paths = write_references(str(shards), concepts, str(tmp_path / "references"))
    assert paths.keys() == set(concepts[0].images)
    assert len({Path(path).read_bytes() for path in paths.values()}) == REFERENCES


def test_a_concept_that_nothing_names_is_refused(ray_cluster, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(random_image(32, 32, 0)).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "0.txt").write_text("a sunny day")
    manifest = prepare(
        str(tmp_path / "images"),
        str(tmp_path / "shards"),
        PrepareSettings(pixel_area=1024, bucket_multiple=4),
    )
    with pytest.raises(ConfigError, match=r"'a sunny day' has neither a concept nor \[V\]"):
        concepts_of(str(tmp_path / "shards"), manifest)


def test_a_vlm_is_asked_about_the_first_sample_that_has_a_picture(tmp_path, monkeypatch):
    class Asked:
        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *ended):
            pass

        def run(self, jobs, keep):
            for job in jobs:
                concept, png = job.arguments
                assert png.startswith(b"\x89PNG")
                keep(job, [f"{concept.name} {number}" for number in range(5)])

    monkeypatch.setattr("dopsd.evaluation.dataset_prompts.JobPool", Asked)
    monkeypatch.setattr("dopsd.evaluation.dataset_prompts.check_config", lambda *_: None)
    monkeypatch.setattr("dopsd.evaluation.dataset_prompts.model_identity", lambda _: "vlm")
    monkeypatch.setattr("dopsd.evaluation.dataset_prompts.gpus_to_come", lambda asked: 0)
    started = []
    monkeypatch.setattr("dopsd.evaluation.dataset_prompts.connect", lambda: started.append(1))

    def prompts(name, samples):
        shards = tmp_path / name
        save_manifest(str(shards), write_shards(shards, samples))
        return dataset_prompts(str(shards), str(tmp_path / f"out {name}"), "vlm", lambda _: None)

    found = prompts("late", {"cat": "tttttp", "dog": "tp"})
    assert {len(prompt.references) for prompt in found} == {1} and len(found) == 10
    started.clear()
    with pytest.raises(DataError, match=r"--prompt-vlm: no sample of the concept 'dog' has a pict"):
        prompts("none", {"cat": "p", "dog": "tt"})
    assert not started, "no VLM is loaded to find that out"


def test_a_vlm_that_writes_nonsense_is_told_in_one_line(shards, vlm_folder, tmp_path):
    with pytest.raises(ModelError, match="prompts by VLM: 0 of 5 lines for the concept 'cat'"):
        dataset_prompts(shards, str(tmp_path / "out"), str(vlm_folder), lambda status: None)


def test_a_vlm_that_is_not_there_is_told_in_one_line(shards, vlm_folder, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ModelError, match=r"prompts by VLM: \./no is no folder and no hub id"):
        dataset_prompts(shards, out, "./no", lambda status: None)
    # Only loading finds this one out: it has a config, but no weights and no processor.
    (tmp_path / "config.json").write_bytes((vlm_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"prompts by VLM: /.* is not available"):
        dataset_prompts(shards, out, str(tmp_path), lambda status: None)
