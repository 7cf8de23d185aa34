"""Concepts that no data has are refused before anything starts, where the data is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dopsd.cli.main import main
from dopsd.data.known_concepts import refuse_unknown_concepts
from dopsd.errors import DataError
from tests.data.samples import picture
from tests.helpers.tiny import make_config


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for concept in ("cat", "dog"):
        (tmp_path / "set" / concept).mkdir(parents=True)
        picture(0).save(tmp_path / "set" / concept / "a.png")
        (tmp_path / "set" / concept / "a.txt").write_text("x")
    return tmp_path / "set"


@pytest.mark.parametrize("key", ["concepts", "concept_weights", "preservation.class_word"])
def test_of_a_source_that_lies_here(source: Path, key: str, tmp_path: Path) -> None:
    def config(name: str, **more: object):
        asked = {
            "concepts": {"concepts": [name]},
            "concept_weights": {"concept_weights": {name: 2.0}},
            "preservation.class_word": {"preservation": {"class_word": {name: "animal"}}},
        }[key]
        data = {"source": str(source), "shards": str(tmp_path / "none"), **asked, **more}
        return make_config("base", data=data)

    refuse_unknown_concepts(config("cat"))
    for balance in ("samples", "concepts"):
        with pytest.raises(DataError) as refused:
            refuse_unknown_concepts(config("cta", balance=balance))
        assert str(refused.value) == (
            f"data.{key}: 'cta' is no concept of the data (did you mean 'cat'?), allowed: "
            "'cat', 'dog'"
        )
    # What takes long to list is asked when it is prepared.
    refuse_unknown_concepts(config("cta", source="s3://bucket/set"))
    refuse_unknown_concepts(config("cta", source=str(tmp_path / "gone")))


@pytest.mark.parametrize("command", [["plan"], ["doctor"], ["train"], ["prepare"]])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.source=shapes:nosuch"], "data.source: 'shapes:nosuch', allowed: shapes:bars, "),
        (
            ["data.concept_weights={brs: 2}"],
            "data.concept_weights: 'brs' is no concept of the data",
        ),
        (["data.concepts=[ring]"], "data.concepts: 'ring' is no concept of the data"),
        (["data.prior.share=0.5"], "data.prior.share: 0.5 without data.prior.prompts, allowed: "),
        (["data.prior.count=9"], "data.prior.count: 9 without data.prior.prompts, allowed: "),
    ],
)
def test_every_command_says_so(
    command: list[str],
    overrides: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "dopsd.driver.setup.run_setup.connect", lambda: pytest.fail("a cluster started")
    )
    words = [*command, "shapes", f"run.folder={tmp_path}/run", *overrides]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert said in (err or out) and "Traceback" not in err


@pytest.mark.parametrize("command", [["plan"], ["job", "--image=i", "--bucket=s3://b"]])
def test_what_only_prints_asks_no_bucket(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dopsd.data.known_concepts.has_shards", lambda config: pytest.fail("S3 was asked")
    )
    words = ["shapes", "run.name=a", "data.shards=s3://b/shards", "data.concepts=[bars]"]
    assert main([command[0], *words, *command[1:]]) == 0
    assert capsys.readouterr().out


def test_shards_here_are_not_those_of_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dopsd.data.known_concepts.has_shards", lambda config: True)
    monkeypatch.setattr(
        "dopsd.data.known_concepts.load_manifest",
        lambda shards: SimpleNamespace(concepts={"other": 1}),
    )
    words = ["shapes", "run.name=a", "data.concepts=[bars]"]
    for kind in (["--kind=rayjob", "--image=i", "--bucket=s3://b"], ["--kind=sbatch"]):
        assert main(["job", *words, "--bucket=/shared", *kind]) == 0
    shared = [*words, f"data.shards={tmp_path}", "--bucket=/shared", "--kind=sbatch"]
    capsys.readouterr()
    assert main(["job", *shared]) == 1
    assert "'bars' is no concept of the data" in capsys.readouterr().err
