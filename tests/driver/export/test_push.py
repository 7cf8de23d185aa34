"""`dopsd push`: what gets into a repository, who may read it, and what a hub refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import safe_open

from dopsd.cli.main import main
from dopsd.config import dump_config
from dopsd.driver.summary import Summary
from dopsd.export import lora_file
from tests.helpers.tiny import make_config

SECRET = "hf_abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    (folder / "preview").mkdir(parents=True)
    base = tmp_path / "models" / "my-base"
    base.mkdir(parents=True)
    config = make_config(base, run={"name": "cat", "folder": str(folder)})
    (folder / "config.yaml").write_text(dump_config(config))
    state = {"layers.0.attention.to_q.lora_A.weight": torch.ones(2, 4)}
    state["layers.0.attention.to_q.lora_B.weight"] = torch.ones(4, 2)
    said = {"dopsd.family": "z_image", "dopsd.base": str(base), "dopsd.recipe": f"K=4 {SECRET}"}
    (folder / "lora.safetensors").write_bytes(lora_file(state, 2, 2, said))
    Image.new("RGB", (8, 8)).save(folder / "preview" / "contact_sheet.png")
    summary = Summary(str(folder), None, None, "page", 40, 9.0, 1.0, 0, 0.5, 0.25)
    (folder / "summary.json").write_text(json.dumps(asdict(summary)))
    return folder


class Hub:
    """What is called of HfApi."""

    def __init__(
        self,
        private: bool | None = None,
        status: int = 0,
        holds: tuple[str, ...] = (),
        tags: tuple[str, ...] = (),
    ) -> None:
        self.private, self.status = private, status
        self.holds, self.tags, self.gone = holds, tags, [""][:0]
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def repo_exists(self, repository: str) -> bool:
        return self.private is not None

    def model_info(self, repository: str, **options: Any) -> Any:
        siblings = [SimpleNamespace(rfilename=name) for name in (".gitattributes", *self.holds)]
        return SimpleNamespace(
            private=self.private, card_data=None, tags=list(self.tags), siblings=siblings
        )

    def create_repo(self, repository: str, **options: Any) -> str:
        if self.status:
            response = httpx2.Response(self.status, request=httpx2.Request("POST", "https://hub"))
            raise HfHubHTTPError("no", response=response)
        self.made = options
        return f"https://hub/{repository}"

    def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> None:
        kind = huggingface_hub.CommitOperationAdd
        added = [each for each in operations if isinstance(each, kind)]
        self.files = {each.path_in_repo: each.path_or_fileobj for each in added}
        self.gone = [each.path_in_repo for each in operations if each not in added]


def pushed(monkeypatch: pytest.MonkeyPatch, hub: Hub, *words: str) -> int:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return main(["push", *words])


def test_a_dry_run_writes_what_a_push_uploads_without_secrets_and_paths(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, out = Hub(), tmp_path / "out"
    assert pushed(monkeypatch, hub, str(run), "me/cat", "--dry-run", str(out)) == 0
    assert not hub.files
    assert pushed(monkeypatch, hub, str(run), "me/cat") == 0
    assert "https://hub/me/cat" in capsys.readouterr().out
    assert hub.made == {"private": True, "exist_ok": True}
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(hub.files) == [
        "README.md",
        "contact_sheet.png",
        "pytorch_lora_weights.safetensors",
    ]
    for payload in hub.files.values():
        assert SECRET.encode() not in payload and str(tmp_path).encode() not in payload
    card = hub.files["README.md"].decode()
    for words in (
        "library_name: diffusers",
        "pipe.load_lora_weights('me/cat')",
        "(contact_sheet.png)",
        "| optimizer steps | 40 |",
        "0.5, 0.25",
        "my-base",
    ):
        assert words in card, words
    with safe_open(out / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert file.metadata()["dopsd.base"] == "my-base"
    assert pushed(monkeypatch, hub, str(run), "me/cat", "--public", "--no-pictures") == 0
    assert hub.made["private"] is False and "contact_sheet.png" not in hub.files


def test_a_second_push_replaces_its_own_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = Hub(True, holds=("README.md", "model.safetensors"))
    assert pushed(monkeypatch, foreign, str(run), "me/cat") == 1 and not foreign.files
    assert "me/cat holds README.md, which dopsd did not push" in capsys.readouterr().err
    own = Hub(True, holds=("README.md", "contact_sheet.png"), tags=("dopsd",))
    assert pushed(monkeypatch, own, str(run), "me/cat", "--no-pictures") == 0
    assert own.files and own.gone == ["contact_sheet.png"]


def test_what_cannot_be_pushed_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(hub: Hub, *words: str) -> str:
        assert pushed(monkeypatch, hub, *words) == 1 and not hub.files
        return " ".join(capsys.readouterr().err.split())

    assert "everybody can read it; allowed: --public" in refused(Hub(False), str(run), "me/cat")
    said = refused(Hub(status=403), str(run), "me/cat")
    assert said.startswith("REPO: me/cat: 403") or "REPO: me/cat: 403, not allowed" in said
    assert "a token that may write it as HF_TOKEN" in said
    assert "allowed: OWNER/NAME" in refused(Hub(), str(run), "a/b/c")
    assert "holds no finished run" in refused(Hub(), str(tmp_path), "me/cat")
    words = [str(run), "me/cat", "--dry-run", str(run)]
    assert "allowed: an empty folder" in refused(Hub(), *words)
    (run / "summary.json").unlink()
    assert "holds no finished run" in refused(Hub(), str(run), "me/cat")
