"""`dopsd fetch`: exactly what is read, with digests; what a hub may answer, each as one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.driver.fetch import fetch as fetching
from dopsd.driver.fetch import to_s3 as fetch_to_s3
from dopsd.driver.fetch.fetch import RECORD
from dopsd.errors import ModelError
from dopsd.files import storage
from dopsd.models import ZImage
from dopsd.models.stored import RECORD as STORED
from tests.helpers.stub_hub import COMMIT, StubHub

BASE, VLM = "owner/base", "owner/vlm"
READ = {
    "model_index.json": b'{"transformer": ["diffusers", "ZImageTransformer2DModel"]}',
    "transformer/config.json": b"{}",
    "transformer/part.safetensors": b"weights" * 100,
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"text" * 100,
    "tokenizer/merges.txt": b"a b",
    "vae/model.safetensors": b"vae",
    "scheduler/scheduler_config.json": b"{}",
}
NOT_READ = {
    "whole.safetensors": b"the same once more",
    "transformer/model.bin": b"pickle",
    "transformer/onnx/model.safetensors": b"other form",
    "README.md": b"words",
}
FILES = {
    BASE: READ | NOT_READ,
    VLM: {"config.json": b"{}", "model.safetensors": b"vlm", "picture.png": b"no"},
}
CONFIG = ["z_image_turbo_lora", f"model.base={BASE}", f"model.vlm={VLM}"]


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub is asked, at an address where nobody is, and again without a pause."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    lead_to("http://127.0.0.1:9", monkeypatch)


def lead_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read once."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with StubHub(FILES) as stub:
        lead_to(stub.url, monkeypatch)
        yield stub


def fetched(folder: Path) -> int:
    return main(["fetch", *CONFIG, "--to", str(folder)])


def test_exactly_what_is_read_lies_there_with_its_digest(hub, tmp_path, capsys):
    assert fetched(tmp_path) == 0
    for repository, read in ((BASE, READ), (VLM, ("config.json", "model.safetensors"))):
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = root / "snapshots" / COMMIT
        found = {path.relative_to(snapshot) for path in root.rglob("*") if path.is_symlink()}
        assert {path.as_posix() for path in found} == set(read)
        assert (root / "refs" / "main").read_text() == COMMIT, "found again without a hub"
    record = json.loads((tmp_path / RECORD).read_text())["repositories"]
    files = {entry["file"]: entry for entry in record[BASE]["files"]}
    content = READ["transformer/part.safetensors"]
    assert files["transformer/part.safetensors"] == {
        "file": "transformer/part.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    said = capsys.readouterr().out
    assert f"{BASE}@{COMMIT[:12]}: {len(READ)} files" in said and "HF_HUB_OFFLINE=1" in said
    hub.asked.clear()
    assert fetched(tmp_path) == 0
    assert not [path for method, path in hub.asked if method == "GET" and "resolve" in path]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((401, "RepoNotFound"), "401, no such repository, or a private one; allowed: its right na"),
        ((403, "GatedRepo"), "403, gated; allowed: accept its licence at {url}/owner/base, and"),
        ((403, ""), "403, not allowed; allowed: a token that may read it as HF_TOKEN (in a cluste"),
        ((404, "RepoNotFound"), "404, no such repository, or a private one"),
        ((404, "RevisionNotFound"), "404, no revision None; allowed: one of {url}/owner/base"),
        ((429, ""), "429, rate limited; allowed: waiting some minutes, or HF_TOKEN"),
        ((500, ""), "500, the hub fails; allowed: the same command"),
        ((503, ""), "503, the hub fails; allowed: the same command"),
    ],
)
def test_what_the_hub_answers_is_one_line(answer, line, hub, tmp_path, capsys):
    hub.answer = answer
    assert fetched(tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dopsd: model.base: owner/base: {line.format(url=hub.url)}")
    with pytest.raises(ModelError, match=rf"^model\.base: owner/base: {answer[0]}, "):
        ZImage(BASE)  # what every other command begins with


def test_a_cut_download_goes_on_where_it_stopped(hub, tmp_path, capsys):
    hub.cut = "transformer/part.safetensors"
    assert fetched(tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("dopsd: model.base: owner/base: the hub is not reached (")
    assert "the same command, which goes on" in said
    hub.cut = ""
    assert fetched(tmp_path) == 0


def test_a_file_that_is_not_the_hubs_is_refused(hub, tmp_path, capsys):
    hub.changed = "transformer/part.safetensors"
    assert fetched(tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert "transformer/part.safetensors: 700 bytes that are not the hub's; allowed: " in said
    assert not (tmp_path / RECORD).exists()


def test_a_full_disk_is_told_before_the_download(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetching, "free_bytes", lambda path: 10)
    assert fetched(tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dopsd: --to: {tmp_path}: disk ") and "owner/base takes 0.0 MB" in said
    assert not [path for method, path in hub.asked if "resolve" in path]


def test_nobody_answers(tmp_path, capsys):
    assert fetched(tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("dopsd: model.base: owner/base: the hub is not reached (")


def test_local_models_need_no_hub(tmp_path, capsys, tiny_base):
    words = ["shapes", f"model.base={tiny_base}", "--to", str(tmp_path / "to")]
    assert main(["fetch", *words]) == 0
    assert "Nothing to fetch" in capsys.readouterr().out


def test_a_record_of_somebody_else_stays(hub, tmp_path, capsys):
    (tmp_path / RECORD).write_text('{"mine": 1}')
    assert fetched(tmp_path) == 1
    assert "no record of dopsd fetch; allowed: another folder" in capsys.readouterr().err
    assert (tmp_path / RECORD).read_text() == '{"mine": 1}'


def to_s3(bucket: str, folder: str) -> int:
    return main(["fetch", *CONFIG, "--to", f"{bucket}/{folder}"])


def test_to_s3_a_folder_of_each_model_with_its_record(hub, bucket, capsys):
    assert to_s3(bucket, "models") == 0
    said = capsys.readouterr().out
    base, vlm = f"{bucket}/models/{BASE}", f"{bucket}/models/{VLM}"
    assert f"Next: dopsd train ... model.base={base} model.vlm={vlm}" in said
    record = json.loads(storage.read_bytes(f"{base}/{STORED}"))
    assert record["source"] == BASE and record["commit"] == COMMIT
    assert record["files"].keys() == READ.keys()
    for name, content in READ.items():
        assert storage.read_bytes(f"{base}/{name}") == content
        assert record["files"][name]["sha256"] == hashlib.sha256(content).hexdigest()
    assert storage.names(vlm) >= {"config.json", "model.safetensors", STORED}
    hub.asked.clear()
    assert to_s3(bucket, "models") == 0
    assert "(0.0 MB of it new)" in capsys.readouterr().out
    assert not [path for _, path in hub.asked if path.endswith("safetensors")]


def test_to_s3_what_was_cut_is_no_model_and_goes_on(hub, bucket, capsys):
    hub.cut = "vae/model.safetensors"
    assert to_s3(bucket, "cut") == 1
    base = f"{bucket}/cut/{BASE}"
    assert not storage.exists(f"{base}/{STORED}")
    hub.cut = ""
    hub.asked.clear()
    assert to_s3(bucket, "cut") == 0
    loaded = [path for _, path in hub.asked if path.endswith("transformer/part.safetensors")]
    assert storage.exists(f"{base}/{STORED}") and not loaded


def test_to_s3_another_revision_replaces_the_first(hub, bucket):
    assert to_s3(bucket, "twice") == 0
    base = f"{bucket}/twice/{BASE}"
    changed = dict(READ, **{"vae/model.safetensors": b"other"})
    del changed["tokenizer/merges.txt"]
    hub.files = FILES | {BASE: changed}
    assert to_s3(bucket, "twice") == 0
    record = json.loads(storage.read_bytes(f"{base}/{STORED}"))
    assert record["files"].keys() == changed.keys()
    assert storage.read_bytes(f"{base}/vae/model.safetensors") == b"other"
    assert not storage.exists(f"{base}/tokenizer/merges.txt")


def test_to_s3_nothing_of_somebody_else_is_replaced(hub, bucket, capsys):
    storage.write_bytes(f"{bucket}/theirs/{BASE}/vae/model.safetensors", b"theirs")
    assert to_s3(bucket, "theirs") == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert "that dopsd did not make: vae" in said
    assert storage.read_bytes(f"{bucket}/theirs/{BASE}/vae/model.safetensors") == b"theirs"


def test_to_s3_what_it_refuses_is_one_line(hub, bucket, faults, capsys):
    faults.add("denied", "/denied/.*safetensors", method="PUT|POST", times=100)
    assert to_s3(bucket, "denied") == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dopsd: {bucket}/denied/{BASE}/") and "AccessDenied" in said


def test_to_s3_a_full_disk_on_the_way(hub, bucket, capsys, monkeypatch):
    monkeypatch.setattr(fetch_to_s3, "free_bytes", lambda path: 10)
    assert to_s3(bucket, "full") == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("dopsd: --to: ") and "; allowed: a TMPDIR on a disk" in said
