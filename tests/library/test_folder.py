from __future__ import annotations

from pathlib import Path

import pytest

from dopsd.errors import ConfigError, DataError
from dopsd.files import storage
from dopsd.library.catalogue.catalogue import Concept
from dopsd.library.folder import CARD, LORA, SHEET, LibraryFolder
from dopsd.library.lora import concept_lora
from dopsd.library.report.card import Card
from dopsd.library.verify import verify_library
from dopsd.ownership.ownership import digest_of
from tests.helpers.tiny import make_config

FILES = {LORA: b"weights"}


def card(name: str, fingerprint: str = "f", files: dict[str, bytes] = FILES) -> Card:
    return Card(
        concept=name,
        fingerprint=fingerprint,
        pictures=4,
        captions=4,
        planned_steps=120,
        steps=120,
        attempt=1,
        seconds=1.5,
        first_loss=0.5,
        last_loss=0.25,
        adapter_sha256="a",
        files={name: digest_of([payload]) for name, payload in files.items()},
        dopsd="0",
    )


@pytest.fixture
def library(tmp_path: Path) -> LibraryFolder:
    folder = LibraryFolder(str(tmp_path / "library"))
    concepts = [Concept("<b>", 4, 4, 120), Concept("../x", 1, 1, 120, "too few pictures: 1")]
    folder.begin(make_config("base"), concepts, {"<b>": "f"})
    return folder


def test_a_card_that_is_whole_is_a_concept_that_is_done(library: LibraryFolder) -> None:
    assert library.cards(["<b>", "../x"]) == {}
    library.keep(card("<b>"), FILES)
    assert library.cards(["<b>", "../x"]) == {"<b>": card("<b>")}
    path = storage.join(library.concept("<b>"), CARD)
    whole = storage.read_bytes(path)
    for broken in (whole[:-20], whole.replace(b'"steps": 120', b'"steps": 900'), b"[]", b""):
        Path(path).write_bytes(broken)
        assert library.card("<b>") is None
    Path(path).write_bytes(whole)
    Path(library.concept("<b>"), LORA).write_bytes(b"half")
    assert library.card("<b>") is None, "an adapter that was cut off"
    Path(library.concept("<b>"), LORA).unlink()
    assert library.card("<b>") is None


def test_a_sheet_that_is_lost_is_told_and_costs_no_training(library: LibraryFolder) -> None:
    files = {**FILES, SHEET: b"pictures"}
    library.keep(card("<b>", files=files), files)
    path = Path(library.concept("<b>"), SHEET)
    path.write_bytes(b"scribble")
    told = "'<b>': sheet.webp does not hold what its card says".replace("'", "")
    assert verify_library(library.path).problems[0] == told
    path.unlink()
    assert library.card("<b>") == card("<b>", files=files)
    assert verify_library(library.path).problems[0].startswith("<b>: sheet.webp: ")
    path.write_bytes(b"of an older adapter")
    library.keep(card("<b>"), FILES)
    assert not path.exists()


def test_where_a_concept_stands_is_whole_or_absent(library: LibraryFolder) -> None:
    assert library.load_state("<b>", "f") is None
    for step in (20, 40):
        files = {"student.safetensors": b"s%d" % step, "ema.safetensors": b"e%d" % step}
        library.save_state("<b>", "f", step, [(0, 0.5)], files)
    resume, files = library.load_state("<b>", "f") or pytest.fail("kept")
    assert (resume.step, resume.losses, files["ema.safetensors"]) == (40, [(0, 0.5)], b"e40")
    (state,) = (Path(library.path) / "state").iterdir()
    assert len(list(state.iterdir())) == 3, "what was kept before is gone"
    assert library.load_state("<b>", "another recipe") is None
    (state / "00000040-student.safetensors").write_bytes(b"s41")
    assert library.load_state("<b>", "f") is None
    library.drop_other_states(["<b>"])
    assert state.exists()
    library.drop_state("<b>")
    assert not state.exists()
    library.save_state("<b>", "f", 20, [], FILES)
    library.drop_other_states(["../x"])
    assert not state.exists()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(ConfigError, match=r"run\.folder: .* holds 1 thing that dopsd did not make"):
        LibraryFolder(str(tmp_path)).check()


def test_the_catalogue_says_why_a_concept_is_skipped(library: LibraryFolder) -> None:
    first, second = library.catalogue()
    assert (first["concept"], first["skipped"], first["fingerprint"]) == ("<b>", "", "f")
    assert second["skipped"] == "too few pictures: 1" and ".." not in second["folder"]
    assert library.config().model.base == "base"


def test_what_was_trained_of_other_data_is_whole_and_told(
    library: LibraryFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    library.keep(card("<b>", "of before"), FILES)
    report = verify_library(library.path)
    assert (report.verified, report.changed, report.problems) == (0, ["<b>"], [])
    assert "1 were trained of other data or by another recipe: ['<b>']" in report.lines()[-1]
    assert concept_lora(f"{library.path}:<b>").endswith(LORA)
    assert "'<b>': trained of other data or by another recipe" in capsys.readouterr().err
    Path(library.concept("<b>"), LORA).write_bytes(b"damaged")
    report = verify_library(library.path)
    assert report.changed == []
    assert report.problems == ["<b>: lora.safetensors does not hold what its card says"]


def test_a_lora_may_be_named_by_library_and_concept(tmp_path: Path) -> None:
    library = LibraryFolder(str(tmp_path / "a:b"))
    names = ["pets:rex=1", "aya", "lonely"]
    concepts = [Concept(name, 4, 4, 120) for name in names[:2]]
    concepts.append(Concept("lonely", 1, 1, 120, "too few pictures: 1"))
    library.begin(make_config("base"), concepts, {"pets:rex=1": "f", "aya": "f"})
    library.keep(card("pets:rex=1"), FILES)
    adapter = f"{library.concept('pets:rex=1')}/{LORA}"
    assert concept_lora(f"{library.path}:pets:rex=1") == adapter
    assert concept_lora(f"mine={library.path}:pets:rex=1") == f"mine={adapter}"
    for other in ("s3://bucket/lora.safetensors", "runs/a=b", "mine=runs/x", f"{library.path}"):
        assert concept_lora(other) == other
    for concept, line in {
        "pets:rax": r"'pets:rax' is no concept of the data \(did you mean 'pets:rex=1'\?\)",
        "aya": "'aya': not trained yet",
        "lonely": r"'lonely': it is skipped \(too few pictures: 1\)",
    }.items():
        with pytest.raises(DataError, match=line):
            concept_lora(f"{library.path}:{concept}")
