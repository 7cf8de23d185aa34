"""No secret is in anything that is written or shown."""

from __future__ import annotations

import json
import time

import pytest

from dopsd.config import dump_config, load_config
from dopsd.credentials import holds_credentials, redact
from dopsd.data.manifest import Manifest, PrepareSettings, Quarantined, save_manifest
from dopsd.data.sources.read import read_source
from dopsd.driver.monitoring.progress import Progress, Report
from dopsd.errors import ConfigError, DataError, DopsdError
from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.prompts import EvalPrompt, read_prompts, write_prompts
from dopsd.evaluation.results import summarize
from dopsd.evaluation.spec import EvaluatedModel
from dopsd.export import lora_metadata
from dopsd.report.page import write_report
from dopsd.run_folder.files import RunFolder
from dopsd.run_folder.jsonl import JsonLines
from dopsd.run_folder.preview_files import HISTORY, target_path
from dopsd.terminal import complain, say
from tests.report.test_page import png

SECRET = "PLANTED"
FORMS = (
    f"https://me:{SECRET}@host/a.png",
    f"https://{SECRET}@host/a.png",
    f"https://me:{SECRET}/x@host/a.png",
    f"https://me:a@{SECRET}@host/a.png",
    f"https:\\/\\/me:{SECRET}@host",
    f"https%3A%2F%2Fme%3A{SECRET}%40host%2Fa.png",
    f"https%253A%252F%252Fme%253A{SECRET}%2540host",
    f"s3://AK:{SECRET}@bucket/a.png",
    f"https://h/a.png?x=1&X-Amz-Signature={SECRET}&y=2",
    f"https://h/a.png?X-Amz-Credential={SECRET}%2F2026",
    f"https://h/a.png?sv=2026&sig={SECRET}%3D",
    f"https%3A%2F%2Fh%3Fsig%3D{SECRET}%26x%3D1",
    f"https://h/a.png?token={SECRET}",
    f"https://h/#access_token={SECRET}",
    f"/a.png?a=1&amp;sig={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"authorization: Basic {SECRET}==",
    f"Authorization: AWS4-HMAC-SHA256 Credential=AK/x, SignedHeaders=host, Signature={SECRET}",
    f'{{"Authorization": "{SECRET}"}}',
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"password='{SECRET}'",
    f'{{"password": "{SECRET}"}}',
    f"AKIA{SECRET}ABCDEFGH",
    f"ASIA{SECRET}ABCDEFGH",
    f"hf_{SECRET}abcdefgh12",
    f"ghp_{SECRET}abcdefgh12345",
    f"bearer {SECRET}.abcdefgh12345",
)


@pytest.mark.parametrize("form", FORMS)
def test_a_credential_goes_and_what_is_around_it_stays(form: str) -> None:
    text = f"before {form} after"
    gone = redact(text)
    assert SECRET not in gone and gone.startswith("before ") and "***" in gone
    assert redact(gone) == gone and holds_credentials(form)


@pytest.mark.parametrize("form", FORMS)
def test_a_record_stays_json(form: str) -> None:
    record = {"where": form, "list": [form, 'a "quote"', form + '"'], form: "key", "n": 1}
    for text in (json.dumps(record), json.dumps(record, ensure_ascii=False, indent=1)):
        gone = redact(text)
        assert SECRET not in gone
        values = json.loads(gone)
        assert len(values) == 4 and values["n"] == 1 and values["list"][1] == 'a "quote"'


@pytest.mark.parametrize(
    "text",
    [
        "a photo of me@home",
        "https://host/model@v1?size=3",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/y@z",
        "context.text_tokens=512 context.image_text_tokens=1024",
        "hf_hub_download and hf_transfer",
        "a bearer of news; the token [V]",
        '{"token": "0f9a"}',
        "0123456789abcdef" * 4,
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact(text) == text and not holds_credentials(text)


def test_secrets_of_the_environment_go_in_every_form(monkeypatch) -> None:
    value = 'a/b+"c&d9'
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "RAY_AUTH_TOKEN",
        "MY_PASSWORD",
    ):
        monkeypatch.setenv(name, f"{value}{name}")
        for form in (
            f"{value}{name}",
            json.dumps(f"{value}{name}"),
            f"a%2Fb%2B%22c%26d9{name}",
            f"a/b+&#34;c&amp;d9{name}".replace("&#34;", "&quot;"),
        ):
            assert name not in redact(f"x {form} y"), form
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")  # could not be told from other words
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token1")
    assert redact("a test of /home/me/token1") == "a test of /home/me/token1"


def test_no_text_takes_long() -> None:
    for part in (
        "a.a-",
        "?",
        "a://",
        "x_token",
        "a:",
        "\\a",
        "hf_",
        "%25",
        "bearer ",
        "sig=",
        "eyJ",
    ):
        began = time.monotonic()
        redact(part * (100_000 // len(part)) + "=")
        assert time.monotonic() - began < 20, part


KEYS = (
    *("run.name", "run.folder", "model.base", "model.vlm", "model.revision", "model.vlm_revision"),
    *("model.attention", "data.source", "data.shards", "data.prior.prompts", "learner.deepspeed"),
    *("preflight.model", "data.caption_keys", "data.columns", "data.concept_weights"),
)
URLS = (FORMS[0], FORMS[5], FORMS[8], FORMS[10], FORMS[24])


@pytest.mark.parametrize(
    "key", [*KEYS, "data.caption_keys", "data.columns", "data.concept_weights"]
)
def test_no_key_of_a_config_takes_a_credential(key: str) -> None:
    for form in URLS:
        value = json.dumps(form)
        if key == "data.caption_keys":
            value = f"[{value}]"
        elif key == "data.columns":
            value = f"{{image: {value}}}"
        elif key == "data.concept_weights":
            value = f"{{{value}: 1}}"
        with pytest.raises(ConfigError, match=rf"^{key}.*: credentials in a ") as caught:
            load_config(None, ["data.source=x", f"{key}={value}"])
        assert SECRET not in str(caught.value)


def test_a_row_with_a_credential_in_its_names_is_quarantined(tmp_path) -> None:
    good = {"image": "a.png", "caption": f"a cat of {FORMS[0]}"}
    rows = [good]
    for form in FORMS:
        rows += [{**good, key: form} for key in ("image", "id", "concept", form)]
        rows += [{**good, "references": [form]}, {**good, "captions": {form: "a"}, "caption": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_source(str(path))
    assert source.rows[0].captions["caption"] == good["caption"], "what trains is unchanged"
    for row in source.rows[1:]:
        assert SECRET not in f"{row.where}{row.sample_id}{row.concept}{row.problem}{row.image}"
    assert len([row for row in source.rows if row.problem]) == 5 * len(FORMS)
    say("\n".join(source.notes))


def test_no_file_or_stream_holds_one(tmp_path, capsys) -> None:
    """Every writer of records, with secrets where text from outside may stand."""
    run = RunFolder(str(tmp_path / "run"))
    text = " and ".join(FORMS)
    run.write("config.yaml", dump_config(load_config(None, ["data.source=x"])).encode())
    manifest = Manifest(
        source=text,
        settings=PrepareSettings(),
        seen=3,
        samples=2,
        buckets={"32x32": 2},
        concepts={text: 2},
        caption_sets=(),
        references={"0": 2},
        fingerprint="f" * 64,
        row_groups=(),
        quarantined=(Quarantined(where=text, sample_id=text, reason=text),),
        notes=(text,),
    )
    save_manifest(run.file("shards"), manifest)
    for name in ("metrics.jsonl", "ledger.jsonl", "skipped.jsonl"):
        lines = JsonLines(run.file(name))
        lines.append({"step": 0, "note": text, "ids": [text]})
        lines.flush()
    span = {"lane": text, "task": text, "step": 0, "start": 0, "end": 1}
    run.write("timeline.jsonl", (json.dumps(span) + "\n").encode())
    summary = {"steps": 1, "seconds": 1, "seconds_to_first_step": 1, "problems": [text]}
    run.write("summary.json", json.dumps(summary).encode())
    history = {"samples": [{"id": text, "prompt": text}], "rows": []}
    run.write(HISTORY, json.dumps(history).encode())
    run.write(target_path(0), png(8, 8))
    run.write("preflight/report.json", json.dumps({"verdict": {"sentence": text}}).encode())
    run.write("preflight/contact_sheet.png", png(8, 8))
    prompts = [EvalPrompt(form, group=form) for form in FORMS]
    write_prompts(run.file("prompts.jsonl"), prompts)
    scores = [ImageScores(text, 4, text, False, text, 0, {})]
    results = summarize(scores, [EvaluatedModel(text, ())], {}, {"clip": text}, {"base": text})
    run.write("results.json", results.to_json().encode())
    run.write("results.md", results.markdown().encode())
    write_report(run.path)
    say(text)
    complain(text)
    with Progress() as progress:
        progress.show("prepare", text)
        progress.show("prepare", Report([text, *manifest.summary_lines()]))
    printed = capsys.readouterr()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 12
    for where, found in [(str(p), p.read_bytes()) for p in files] + [
        ("stdout", printed.out.encode()),
        ("stderr", printed.err.encode()),
        ("error", str(DataError(text)).encode()),
        (
            "metadata",
            json.dumps(lora_metadata(load_config(None, ["data.source=x"]), manifest)).encode(),
        ),
        ("names", "".join(prompt.image_name(0) for prompt in prompts).encode()),
    ]:
        assert SECRET.encode() not in found and SECRET.lower().encode() not in found, where
    assert json.loads((tmp_path / "run/results.json").read_text())["settings"]


def test_prompts_that_are_read_again_are_unchanged(tmp_path) -> None:
    prompts = tuple(EvalPrompt(f"a cat, {form}") for form in FORMS)
    path = str(tmp_path / "prompts.jsonl")
    write_prompts(path, prompts, verbatim=True)
    assert read_prompts(path) == prompts


def test_an_error_is_one_short_line_wherever_it_goes() -> None:
    error = DopsdError(f"key: {'x' * 100_000}\n\x1b[31m {FORMS[0]}, allowed: y")
    assert len(str(error)) <= 1500 and str(error).isprintable() and SECRET not in str(error)
    assert str(error).startswith("key: xxx") and str(error).endswith("allowed: y")
    assert str(DopsdError(str(error))) == str(error)
