"""`dopsd init` on a terminal and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dopsd.cli.main import app, main
from dopsd.config import load_config
from tests.data.samples import write_folder

FLAGS = {"base": "z_image_turbo", "card": "4090-24", "concept": "Rex", "cluster": "here:1"}


def words(**flags: str) -> list[str]:
    return ["init", *(word for name, value in flags.items() for word in (f"--{name}", value))]


@pytest.fixture(autouse=True)
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of two concepts, below the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("Rex", "Tom"):
        write_folder(tmp_path / "pets" / name, 2, ((512, 512),))
    return tmp_path / "pets"


def test_questions_are_asked_until_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopsd.cli.init._is_terminal", lambda: True)
    answers = ["sdxl", "z_image_turbo", "none", "4090-24", "nowhere", "pets", "", "here:x", ""]
    asked = CliRunner().invoke(app, ["init"], input="\n".join([*answers, ""]))
    assert asked.exit_code == 0, asked.output  # of two concepts the folder's name is offered
    for told in ("--base: 'sdxl'", "--card: none with", "nowhere", "--cluster: 'here:x'"):
        assert told in asked.stderr, told
    assert "concepts: Rex (2), Tom (2)" in asked.stdout
    assert asked.stdout.rstrip().endswith("dopsd train pets.yaml")
    config = load_config("pets.yaml")
    assert (config.run.name, config.run.folder) == ("pets", "runs/pets")
    assert config.data.source == "pets" and config.data.concepts == []


def test_flags_are_answers_and_what_is_there_is_never_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(**FLAGS, data="pets")) == 0
    said = capsys.readouterr().out
    assert "4 of 4 samples can be used" in said and "Planned (dopsd plan)" in said
    assert said.splitlines()[-3:] == [
        "  dopsd doctor rex.yaml",
        "  dopsd prepare rex.yaml --cache-contexts",
        "  dopsd train rex.yaml",
    ]
    config, before = load_config("rex.yaml"), Path("rex.yaml").read_bytes()
    assert config.data.concepts == ["Rex"], "one of two concepts was asked for"
    assert main(words(**FLAGS, data="pets")) == 1
    assert "rex.yaml: is there already; allowed: another" in capsys.readouterr().err
    assert Path("rex.yaml").read_bytes() == before
    assert main(words(**FLAGS, data="pets", out="own/name.yaml")) == 0
    assert load_config("own/name.yaml") == config


@pytest.mark.parametrize("missing", ["base", "card", "data", "concept", "cluster"])
def test_without_a_terminal_the_flag_that_is_missing_is_named(
    missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {name: text for name, text in (FLAGS | {"data": "pets"}).items() if name != missing}
    assert main(words(**flags)) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"dopsd: --{missing}: missing") and not printed.out
    assert len(printed.err.splitlines()) == 1 and not Path("rex.yaml").exists()


def test_what_cannot_be_is_refused_before_the_data_are_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("base", "x"), ("card", "x"), ("cluster", "x"), ("concept", "")):
        assert main(words(**(FLAGS | {"data": "nowhere", name: value}))) == 1
        assert capsys.readouterr().err.startswith(f"dopsd: --{name}: '{value}', allowed: ")


def test_the_demo_needs_neither_card_nor_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    given = words(base="shapes", data="shapes:ring", concept="ring", cluster="here")
    assert main(given) == 0
    assert capsys.readouterr().out.rstrip().endswith("dopsd train ring.yaml")
    config = load_config("ring.yaml")
    assert (config.data.source, config.run.folder) == ("shapes:ring", "runs/ring")


@pytest.mark.parametrize(
    ("concept", "taken", "run"),
    [("Rex", (), "rex"), ("Rex", ("rex", "rex-2"), "rex-3"), ("7th cat", (), "run-7th-cat")],
)
def test_the_run_has_a_name_of_its_own_that_kubernetes_takes(
    concept: str, taken: tuple[str, ...], run: str
) -> None:
    for name in taken:
        Path("runs", name).mkdir(parents=True)
    given = words(base="shapes", data="shapes:ring", concept=concept, cluster="here", out="a.yaml")
    assert main(given) == 0
    config = load_config("a.yaml")
    assert (config.run.name, config.run.folder) == (run, f"runs/{run}")


SHAPES = {"base": "shapes", "concept": "Bars", "cluster": "here:1", "data": "shapes:bars"}


def test_a_shapes_concept_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(**SHAPES | {"data": "shapes:nosuch"})) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dopsd: --data: 'shapes:nosuch', allowed: shapes:bars, shapes:ring")
    assert not Path("bars.yaml").exists()


def test_a_place_where_no_run_can_lie_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("runs").touch()
    assert main(words(**SHAPES)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dopsd: run.folder (runs/NAME): runs cannot be made, ")
    assert line.endswith("/runs is no folder; allowed: a folder that can be written, or s3://")
    assert not Path("bars.yaml").exists()


def test_a_recipe_for_elsewhere_asks_no_room_for_a_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").touch()  # no run's folder can be made below it
    out = str(tmp_path / "own" / "x.yaml")
    assert main(words(**FLAGS, data="pets", out=out)) == 1
    assert "run.folder (runs/NAME): runs cannot be made" in capsys.readouterr().err
    elsewhere = FLAGS | {"cluster": "kuberay:8", "data": "pets", "out": out}
    assert main(words(**elsewhere)) == 0
    assert Path(out).exists()
