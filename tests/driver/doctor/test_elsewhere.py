"""Findings on S3 and on the hub, of servers that refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dopsd.cli.main import main
from dopsd.config import RunConfig, load_config
from dopsd.driver.doctor import hub
from dopsd.driver.doctor.hub import Model, check_models, models_of
from dopsd.driver.doctor.remote import check_s3
from dopsd.files import storage
from tests.helpers.faulty_s3 import Faults

SECRET = "hf_" + "a1B2c3D4" * 4


def config(*overrides: str) -> RunConfig:
    return load_config("z_image_turbo_lora", list(overrides))


def test_local_folders_ask_no_s3() -> None:
    assert check_s3(config()) == []


def test_s3_is_written_read_and_left_as_it_was(bucket: str) -> None:
    run = f"{bucket}/doctor/run"
    storage.write_bytes(f"{run}/theirs", b"theirs")
    findings = check_s3(config(f"run.folder={run}", f"data.source={bucket}/doctor/none"))
    assert [(f.name, f.level) for f in findings] == [
        ("s3 run.folder", "ok"),
        ("s3 data.source", "stop"),
    ]
    assert storage.names(run) == {"theirs"}


def test_s3_that_refuses_is_told_with_its_reason(bucket: str, faults: Faults, monkeypatch) -> None:
    (finding,) = check_s3(config("run.folder=s3://dopsd-no-such-bucket/run"))
    assert finding.level == "stop" and "AWS_ENDPOINT_URL" in finding.remedy

    def refuse(path: str) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(storage, "remove", refuse)
    (finding,) = check_s3(config(f"run.folder={bucket}/doctor-kept"))
    assert finding.level == "stop" and "s3:DeleteObject" in finding.remedy
    assert storage.names(f"{bucket}/doctor-kept").pop() in finding.remedy


class Hub:
    """What the hub and the cache on this machine say."""

    error: Exception | None = None
    gated: Any = False
    cached = False

    def model_info(self, name: str, revision: str | None = None, timeout: float = 0) -> Any:
        return SimpleNamespace(gated=self.gated)

    def auth_check(self, name: str) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: there)
    monkeypatch.setattr(hub, "is_cached", lambda model: there.cached)
    return there


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None, url="https://hub")
    return kind(f"{status} for token {SECRET}", response=response)  # type: ignore[arg-type]


def test_the_models_of_a_config() -> None:
    assert [(m.key, m.name) for m in models_of(config())] == [
        ("model.base", "Tongyi-MAI/Z-Image-Turbo"),
        ("model.vlm", "Qwen/Qwen3-VL-4B-Instruct"),
        ("preflight.model", "facebook/dinov2-small"),
    ]
    assert [m.needed for m in models_of(config("preflight.mode=strict"))] == [True] * 3
    assert models_of(load_config("shapes", [])) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal(GatedRepoError, 403), "gated, and not open with a token"),
        (refusal(RepositoryNotFoundError, 404), "no such repository"),
        (refusal(RevisionNotFoundError, 404), "no revision"),
        (refusal(HfHubHTTPError, 401), "the hub refuses the token"),
        (ConnectionError("Name or service not known"), "the hub does not answer"),
    ],
)
def test_a_model_that_is_not_to_be_had(server: Hub, error: Exception, words: str) -> None:
    server.error = error
    findings = check_models(config())
    assert [f.level for f in findings] == ["stop", "stop", "do"]
    assert all(words in f.found and f.remedy for f in findings)
    assert "Tongyi-MAI/Z-Image-Turbo" in findings[0].found
    assert SECRET not in repr(findings)


def test_a_hub_that_does_not_answer_is_no_matter_for_what_is_cached(server: Hub) -> None:
    server.error, server.cached = ConnectionError("down"), True
    assert {f.level for f in check_models(config())} == {"ok"}


def test_a_gated_model_on_a_cluster_wants_the_token_on_every_node(server: Hub, monkeypatch) -> None:
    server.gated = "manual"
    assert {f.level for f in check_models(config())} == {"ok"}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("HF_TOKEN")
    finding, *_ = check_models(config())
    assert finding.level == "do" and "HF_TOKEN in every node" in finding.remedy


def test_offline_only_the_cache_counts(server: Hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [f.level for f in check_models(config())] == ["stop", "stop", "do"]
    server.cached = True
    assert {f.level for f in check_models(config())} == {"ok"}


def test_folders_are_looked_into_and_the_hub_is_not_asked(
    server: Hub, tiny_base: Path, tmp_path: Path
) -> None:
    server.error = AssertionError("asked")
    folders = [f"model.base={tiny_base}", f"model.vlm={tiny_base}/vlm", "preflight.mode=off"]
    assert [f.level for f in check_models(config(*folders))] == ["ok", "ok"]
    assert hub._check(Model("model.base", str(tmp_path))).level == "stop"
    assert hub._check(Model("model.base", "./not/there")).level == "stop"


def test_the_command_ends_with_one_where_something_stops(
    server: Hub, tmp_path: Path, capsys, monkeypatch
) -> None:
    run = f"run.folder={tmp_path}/run"
    code = main(["doctor", "shapes", run, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (code == 0)
    assert {"python", "libraries", "cpus", "/dev/shm", "models"} <= {
        f["name"] for f in said["findings"]
    }
    server.error = refusal(GatedRepoError, 403)
    assert main(["doctor", "flux2_klein_9b_edit_lora", run]) == 1
    out = capsys.readouterr().out
    assert "STOP  model.base" in out and SECRET not in out
    assert main(["doctor", "no_such_recipe"]) == 1
    assert capsys.readouterr().err.startswith("dopsd: config no_such_recipe: ")
