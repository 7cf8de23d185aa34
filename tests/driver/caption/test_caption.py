"""`dopsd caption`: a list that grows line by line, is gone on with, and is a source as it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.data.manifest import PrepareSettings
from dopsd.data.sources.read import read_source
from dopsd.driver.caption import run
from dopsd.driver.caption.lines import CAPTIONED_BY, check_list
from dopsd.driver.caption.writer import CaptionWriter, Written
from dopsd.errors import ConfigError, DataError, ModelError
from dopsd.evaluation.vlm import Vlm
from tests.data.samples import picture, png

SETTINGS = PrepareSettings()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures with a caption, one without, one that is broken, and a caption of nothing."""
    folder = tmp_path / "rex" / "3_dog"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
    (folder / "0.txt").write_text("a [V] dog")
    (folder / "1.json").write_text(json.dumps({"detailed": "mine", "short": "[V] dog"}))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "alone.txt").write_text("no picture")
    return tmp_path / "rex"


class Pool:
    """Does the jobs here, in place of actors; ends after ``most`` of them as a kill would."""

    def __init__(self, most: int = 100) -> None:
        self.most, self.asked = most, 0

    def __call__(self, worker: type, arguments: tuple, role: object, **limits: object) -> Pool:
        self.worker = worker(*arguments)
        return self

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None: ...

    def run(self, jobs, done) -> None:
        for job in jobs:
            if self.asked == self.most:
                raise KeyboardInterrupt
            self.asked += 1
            done(job, getattr(self.worker, job.method)(*job.arguments))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """Runs without Ray, on the real model; the answers are words of its own."""

    def use(pool: Pool) -> Pool:
        monkeypatch.setattr(run, "JobPool", pool)
        monkeypatch.setattr(run, "connect", dict)
        monkeypatch.setattr(run, "wait_for_resources", lambda *given: None)
        answer = Vlm.answer
        monkeypatch.setattr(
            Vlm, "answer", lambda vlm, *given: f"A dog.\n{len(answer(vlm, *given))}"
        )
        return pool

    return use


def ask(source: Path, vlm: Path, out: Path | str | None, **changed: object) -> run.Captioned:
    file = None if out is None else str(out)
    asked = run.Asked(str(source), "detailed", SETTINGS, str(vlm), out=file, **changed)
    return run.caption(asked, lambda line: None, lambda line: None)


def test_pictures_get_captions_beside_those_that_they_have(pictures, vlm_folder, tmp_path, here):
    here(Pool())
    out = tmp_path / "list.jsonl"
    done = ask(pictures, vlm_folder, out)
    assert (done.written, done.listed, done.repeats) == (2, 3, {"dog": 3})
    assert any("broken.png: broken image" in line for line in done.left_out)
    assert any("alone.txt: missing image" in line for line in done.left_out)
    rows = {row.where.split(":")[1]: row for row in read_source(str(out)).rows}
    assert all(row.problem is None and row.concept == "dog" for row in rows.values())
    found = {row.sample_id: row.captions for row in rows.values()}
    assert found["3_dog/0"].keys() == {"caption", "detailed"}
    assert found["3_dog/0"]["caption"] == "a [V] dog"
    assert found["3_dog/0"]["detailed"].startswith("A dog. ")
    assert found["3_dog/1"] == {"detailed": "mine", "short": "[V] dog"}
    assert found["3_dog/2"].keys() == {"detailed"}
    assert read_source(str(out)).notes == []
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert {entry["image"] for entry in entries} == {f"rex/3_dog/{n}.png" for n in range(3)}
    assert not (tmp_path / "list.jsonl.writing").exists()


def test_it_goes_on_where_it_stopped(pictures, vlm_folder, tmp_path, here):
    out = tmp_path / "list.jsonl"
    here(Pool(most=1))
    with pytest.raises(KeyboardInterrupt):
        ask(pictures, vlm_folder, out)
    before = out.read_text()
    assert before.count("\n") == 2  # the user's own, and one that was written
    with out.open("a") as file:
        file.write('{"id": "half of a li')  # as a power cut leaves it
    (pictures / "3_dog/broken.png").unlink()
    pool = here(Pool())
    assert ask(pictures, vlm_folder, out).written == pool.asked == 1
    assert out.read_text().startswith(before) and out.read_text().count("\n") == 3
    again = here(Pool())
    done = ask(pictures, vlm_folder, out)
    assert (again.asked, done.written, done.listed) == (0, 0, 3)


def test_nothing_of_somebody_else_is_added_to(pictures, vlm_folder, tmp_path, here):
    here(Pool())
    out = tmp_path / "list.jsonl"
    out.write_text('{"image": "a.png", "caption": "mine"}\n')
    with pytest.raises(ConfigError, match=r"line 1 \(fields of another kind\); allowed: another"):
        ask(pictures, vlm_folder, out)
    assert out.read_text() == '{"image": "a.png", "caption": "mine"}\n'
    # What ends without an end of a line is no line of ours that was cut off.
    for text in ("my notes", '{"precious": "line"}', '{"id": "a", "image": "b.png", "text": "x"}'):
        out.write_text(text)
        with pytest.raises(ConfigError, match="did not write: a last line without an end; allowed"):
            ask(pictures, vlm_folder, out)
        assert out.read_text() == text
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    with pytest.raises(ConfigError, match="is no file, or a link"):
        ask(pictures, vlm_folder, link)
    out.unlink()
    ask(pictures, vlm_folder, out)
    with pytest.raises(ConfigError, match="the same --vlm, --question and --subject"):
        ask(pictures, vlm_folder, out, subject="[V] dog")
    with pytest.raises(ConfigError, match="did not write: line 2"):
        check_list(str(out), "x", "short", "y")


def test_two_folders_of_one_name_have_no_list_in_common(
    pictures, vlm_folder, tmp_path, here, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pool = here(Pool())
    other = tmp_path / "others/rex"
    other.mkdir(parents=True)
    (other / "x.png").write_bytes(png(picture(9)))
    ask(pictures, vlm_folder, None)
    before = Path("rex-detailed.jsonl").read_text()
    asked = pool.asked
    with pytest.raises(ConfigError, match=r"rex-detailed.jsonl holds captions of 3 .* none of "):
        ask(other, vlm_folder, None)
    assert Path("rex-detailed.jsonl").read_text() == before and pool.asked == asked
    assert ask(pictures, vlm_folder, None).listed == 3  # its own goes on
    assert ask(other, vlm_folder, "rex-detailed.jsonl").listed == 4  # it was asked for


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"out": "s3://bucket/list.jsonl"}, r"--out: s3://.*allowed: a local file"),
        ({"out": "list.txt"}, r"--out: list.txt, allowed: a file that ends in .jsonl"),
        ({"out": f"{__file__}/list.jsonl"}, "--out: .* cannot be written, .* is no folder"),
        ({"question": " "}, "--question: an empty text"),
        ({"subject": ""}, "--subject: an empty text"),
        ({"vlm": "./no"}, "captions: ./no is no folder and no hub id"),
        ({"key": "poem"}, "--key: 'poem' without a question of its own, allowed: short, medium"),
        ({"key": "a\nb"}, "--key holds U.000A"),
        ({"key": " "}, "--key: '', allowed: a name, such as short"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(pictures, vlm_folder, changed, problem):
    words = {"vlm": str(vlm_folder), "key": "detailed", **changed}
    asked = run.Asked(str(pictures), settings=SETTINGS, **words)
    with pytest.raises((ConfigError, ModelError), match=problem):
        run.caption(asked, lambda line: None, lambda line: None)


def test_pictures_in_tables_have_no_path_to_list(tmp_path, vlm_folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"image": [png(picture(0))], "text": ["[V]"]}), path)
    with pytest.raises(DataError, match=r"pictures stand inside set.parquet:0, allowed"):
        ask(path, vlm_folder, tmp_path / "list.jsonl")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    with pytest.raises(DataError, match=r"none of 1 samples has a picture that can be read: a.txt"):
        ask(tmp_path / "texts", vlm_folder, tmp_path / "list.jsonl")


def test_an_answer_that_cannot_train_is_none(vlm_folder, monkeypatch):
    writer = CaptionWriter(str(vlm_folder), "detailed", "?", "cpu")
    for answer, problem in (("  ", "empty answer"), ("<|im_end|>", "answer: caption holds")):
        monkeypatch.setattr(Vlm, "answer", lambda *given, answer=answer: answer)
        assert writer.write(png(picture(0))).problem.startswith(problem)
    assert writer.write(b"") == Written(problem="zero bytes")


def test_the_model_says_the_same_each_time(speaking_vlm):
    said = {
        CaptionWriter(str(speaking_vlm), "detailed", "a red cat", "cpu").write(png(picture(0)))
        for _ in range(2)
    }
    assert len(said) == 1 and said.pop().text


def test_the_subject_is_named_in_the_question():
    question = run.question_for("medium", None, "[V] dog")
    assert "one sentence" in question and '"[V] dog"' in question
    assert run.question_for("poem", "A poem?", None) == "A poem?"


@pytest.mark.ray
def test_the_command_says_what_comes_next(
    pictures, speaking_vlm, tmp_path, ray_cluster, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (pictures / "3_dog/2.txt").write_text("a [V] dog")
    words = ["caption", "rex", "--vlm", str(speaking_vlm), "--device", "cpu"]
    assert main([*words, "--key", "poem", "--question", "a red cat"]) == 0
    said = capsys.readouterr().out
    assert "broken.png: broken image" in said
    assert "Captions: rex-poem.jsonl (3 pictures, 3 written now)" in said
    assert "Next: dopsd train CONFIG data.source=rex-poem.jsonl" in said
    assert """'context.prompt_pairs=[["caption", "poem"]]'""" in said
    for line in (tmp_path / "rex-poem.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["captions"]["poem"] and entry[CAPTIONED_BY].startswith(str(speaking_vlm))
