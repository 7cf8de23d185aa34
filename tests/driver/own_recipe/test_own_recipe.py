"""`dopsd init` without questions: every base on every card is a recipe that loads, fits and says
what is to be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dopsd.config import load_config
from dopsd.driver.own_recipe.answers import (
    BASES,
    NO_CARD,
    SHAPES,
    Answers,
    Cluster,
    base_named,
    card_for,
    cluster_named,
    concept_named,
)
from dopsd.driver.own_recipe.commands import next_commands, remarks
from dopsd.driver.own_recipe.fit import fitted
from dopsd.driver.own_recipe.text import recipe_text
from dopsd.errors import ConfigError, ResourceError
from dopsd.plan.cards import CARDS, Card

TOO_SMALL = ("krea_2_turbo", "4060ti-16")
COMBINATIONS = [
    (base, card)
    for base in BASES
    for card in ([NO_CARD] if base == SHAPES else list(CARDS))
    if (base, card) != TOO_SMALL
]


def asked(base: str, card: str, cluster: str = "here:1", **more) -> Answers:
    given = {"source": "my pets", "concept": "Rex"} | more
    return Answers(base, card_for(base, card), cluster=cluster_named(cluster), **given)


@pytest.mark.parametrize(("base", "card"), COMBINATIONS)
@pytest.mark.parametrize("cluster", ["here:1", "ray:3", "kuberay:16"])
def test_the_recipe_loads_and_its_card_holds_the_run(
    base: str, card: str, cluster: str, tmp_path: Path
) -> None:
    answers = asked(base, card, cluster)
    config, plan = fitted(answers, "rex")
    file = tmp_path / "rex.yaml"
    file.write_text(recipe_text(answers, plan, next_commands(answers, config, "rex.yaml")))
    read = load_config(file)
    assert (read.run.name, read.run.folder, read.data.source) == ("rex", "runs/rex", "my pets")
    assert not read.run.overwrite
    if base == SHAPES:
        assert read.device == "cpu"
        return
    assert read.source == "fused" and read.data.context_cache == "require"
    assert read.learner.workers == answers.cluster.gpus
    assert read.learner.global_batch >= 4 and read.learner.global_batch % read.learner.workers == 0
    for section in ("model", "context", "data", "method", "lora", "learner", "preview"):
        assert getattr(read, section) == getattr(config, section), section
    assert answers.card is not None and read.plan.card == answers.card.name
    assert not plan.misfits(answers.card.usable, answers.card.name)
    assert plan.total(plan.demand.encoder()) <= answers.card.usable


def test_a_larger_card_gives_nothing_up_and_a_smaller_one_what_it_must() -> None:
    def savings(card: str) -> tuple[str, int]:
        config, _ = fitted(asked("z_image_turbo", card), "rex")
        return config.model.quantize, config.learner.checkpoint_every

    assert savings("h100-80") == ("none", 0)
    assert savings("5090-32") == ("none", 1)
    assert savings("4060ti-16") == ("nf4", 1)


def test_a_card_that_holds_it_in_no_way_is_refused_with_those_that_do() -> None:
    small = Answers("flux2_klein_9b", Card("toy-8", 8, 10), "pets", "Rex", Cluster())
    with pytest.raises(ResourceError, match=r"^--card: toy-8 holds 7.8 GiB, .*allowed: 4060ti-16"):
        fitted(small, "rex")
    with pytest.raises(ResourceError, match=r"^--card: 4060ti-16 holds .* allowed: 3090-24"):
        fitted(asked(*TOO_SMALL), "rex")


NASTY = (
    *("[V] cat", "a: b #c", "- x", "null", "1e5", "'q\"", "# x", "{a}", "caf\u00e9", "&a *b", "!t"),
    *("x" * 80, "\U0001f98a fox", "a\u2028b"),
)


@pytest.mark.parametrize("name", NASTY)
def test_names_stay_names_whatever_yaml_makes_of_them(name: str, tmp_path: Path) -> None:
    answers = asked("z_image_turbo", "4090-24", source=name, concept=name, concepts=(name,))
    config, plan = fitted(answers, "rex")
    commands = next_commands(answers, config, f"{name}.yaml")
    file = tmp_path / "rex.yaml"
    file.write_text(recipe_text(answers, plan, commands))
    read = load_config(file)
    assert read.data.source == name and read.data.concepts == [name]
    assert shlex.split(commands[-1]) == ["dopsd", "train", f"{name}.yaml"]


@pytest.mark.parametrize(
    ("cluster", "first", "last"),
    [
        ("here:1", "pip install 'dopsd[quantize]'", "dopsd train rex.yaml"),
        ("ray:8", "pip install 'dopsd[quantize]'", "RAY_ADDRESS=auto dopsd train rex.yaml"),
        (
            "kuberay:16",
            "dopsd prepare rex.yaml data.shards=s3://BUCKET/shards/rex --cache-contexts",
            "dopsd job rex.yaml --image IMAGE --bucket s3://BUCKET --gpus-per-pod 8 | "
            "kubectl apply -f -",
        ),
    ],
)
def test_the_commands_are_those_of_the_place(cluster: str, first: str, last: str) -> None:
    answers = asked("z_image_turbo", "4060ti-16", cluster)
    config, plan = fitted(answers, "rex")
    commands = next_commands(answers, config, "rex.yaml")
    assert (commands[0], commands[-1]) == (first, last)
    assert remarks(answers, plan)[0].startswith("2000 steps (learner.steps) take about ")


@pytest.mark.parametrize(
    ("read", "given", "line"),
    [
        (base_named, "sdxl", "--base: 'sdxl', allowed: z_image_turbo, "),
        (lambda card: card_for("z_image_turbo", card), "4090", "--card: '4090', allowed: 4060ti"),
        (lambda card: card_for("z_image_turbo", card), "none", "--card: none with --base z_image"),
        (cluster_named, "here:0", "--cluster: 'here:0', allowed: here, ray, kuberay"),
        (cluster_named, "here:", "--cluster: 'here:', allowed: here, ray, kuberay"),
        (cluster_named, "slurm", "--cluster: 'slurm', allowed: here, ray, kuberay"),
        (concept_named, "a\nb", "--concept: 'a\\\\nb', allowed: a name"),
        (concept_named, "  ", "--concept: '  ', allowed: a name"),
    ],
)
def test_an_answer_that_cannot_be_is_one_line(read, given: str, line: str) -> None:
    with pytest.raises(ConfigError) as told:
        read(given)
    assert str(told.value).startswith(line.replace("\\\\", "\\"))


@pytest.mark.parametrize("name", ["Tongyi-MAI/Z-Image-Turbo", "z-image-turbo", "Z_Image_Turbo"])
def test_a_base_goes_by_its_hub_name_too(name: str) -> None:
    assert base_named(name) == "z_image_turbo"
    assert base_named("black-forest-labs/FLUX.2-klein-9B") == "flux2_klein_9b"
