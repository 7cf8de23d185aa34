"""Models on S3: fetched there with digests, copied once to a node, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from dopsd.cli.main import main
from dopsd.config import load_config
from dopsd.driver.doctor.hub import check_models
from dopsd.errors import ModelError
from dopsd.files import storage
from dopsd.models import FAMILIES, resolve_vlm, stored
from dopsd.models.fingerprint import model_identity
from dopsd.models.stored import RECORD, local_copy
from tests.helpers.faulty_s3 import Faults


@pytest.fixture(scope="module")
def url(bucket: str, tiny_base: Path) -> str:
    """The tiny base on S3, by `dopsd fetch`."""
    to = f"{bucket}/stored"
    assert main(["fetch", "shapes", f"model.base={tiny_base}", "--to", to]) == 0
    return f"{to}/{tiny_base.name}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF_HOME of a node that has seen no model yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr(stored, "_copies", {})
    stored._copy.cache_clear()
    return tmp_path


def weights(home: Path) -> set[str]:
    return {path.parent.name for path in home.rglob("*.safetensors")}


def reads(faults: Faults, ending: str) -> list[str]:
    """Objects of this name that were read."""
    return [path for method, path in faults.requests if method == "GET" and ending in path]


def test_a_part_comes_when_it_is_loaded_and_once(url, home, tiny_base, faults):
    family = FAMILIES["z_image"](url)
    assert weights(home) == set(), "a head that checks a config holds no weights"
    assert family.base.startswith(str(home))
    loaded = family.load_transformer(torch.float32, "cpu")
    assert weights(home) == {"transformer"}
    there = FAMILIES["z_image"](str(tiny_base)).load_transformer(torch.float32, "cpu")
    for name, tensor in there.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    faults.clear()
    stored._copy.cache_clear()  # as another process
    FAMILIES["z_image"](url).load_transformer(torch.float32, "cpu")
    assert len(reads(faults, RECORD)) == 1 and not reads(faults, "transformer")


def test_the_vlm_inside_a_base_is_found_in_its_copy(url, home):
    vlm = resolve_vlm(url, None)
    assert vlm.startswith(str(home)) and vlm.endswith("/vlm")
    stored.bring_weights(vlm)
    assert weights(home) == {"vlm"}


def test_its_identity_does_not_depend_on_what_is_here(url, bucket, tiny_base):
    before = model_identity(f"{local_copy(url, 'model.base')}/transformer")
    FAMILIES["z_image"](url).load_transformer(torch.float32, "cpu")
    assert model_identity(f"{local_copy(url, 'model.base')}/transformer") == before
    assert model_identity(url) != before


def _bring(url: str, home: str) -> None:
    from huggingface_hub import constants

    constants.HF_HOME = home
    stored.bring_weights(local_copy(url, "model.base"))


def test_processes_of_a_node_share_one_download(url, home, faults):
    spawn = multiprocessing.get_context("spawn")
    actors = [spawn.Process(target=_bring, args=(url, str(home))) for _ in range(2)]
    for actor in actors:
        actor.start()
    for actor in actors:
        actor.join(120)
    assert [actor.exitcode for actor in actors] == [0, 0]
    read = reads(faults, "/vae/")
    assert read and len(read) == len(set(read))
    assert not list(home.rglob("*.tmp-*"))


def test_other_bytes_get_no_name(url, home, faults):
    part = f"{url}/vae/diffusion_pytorch_model.safetensors"
    content = storage.read_bytes(part)
    storage.write_bytes(part, bytes(reversed(content)))
    family = FAMILIES["z_image"](url)
    with pytest.raises(ModelError, match=r"model\.base: .*vae/.*: \d+ bytes that are not those of"):
        family.load_vae(torch.float32, "cpu")
    assert weights(home) == set() and not list(home.rglob("*.tmp-*"))
    storage.write_bytes(part, content)
    family.load_vae(torch.float32, "cpu")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("denied", "403: Forbidden"),
        ("expired", "often expired credentials"),
        ("missing", "but missing"),
    ],
)
def test_what_s3_refuses_is_one_line(kind, line, url, faults):
    family = FAMILIES["z_image"](url)
    faults.add(kind, "/vae/", method="GET|HEAD", times=100)
    with pytest.raises(ModelError, match=rf"^model\.base: [^\n]*/vae/[^\n]*{line}[^\n]*$"):
        family.load_vae(torch.float32, "cpu")


def test_a_cut_read_is_read_again(url, faults):
    family = FAMILIES["z_image"](url)
    faults.add("cut", "/vae/.*safetensors", method="GET")
    family.load_vae(torch.float32, "cpu")


def test_a_full_disk_is_told_before_anything_comes(url, home, monkeypatch):
    family = FAMILIES["z_image"](url)
    monkeypatch.setattr(stored, "free_bytes", lambda path: 10)
    line = rf"^model\.base: {url} takes .* MB more in {home}.*; allowed: an HF_HOME on a disk with"
    with pytest.raises(ModelError, match=line):
        family.load_vae(torch.float32, "cpu")
    assert weights(home) == set()


def test_a_folder_without_a_record_is_no_model(bucket, tiny_base, capsys):
    index = (tiny_base / "model_index.json").read_bytes()
    storage.write_bytes(f"{bucket}/plain/model_index.json", index)
    words = [f"model.base={bucket}/plain", "run.folder=never"]
    assert main(["train", "shapes", *words]) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(
        f"dopsd: model.base: {bucket}/plain holds no {RECORD}; allowed: a folder"
    )
    (finding,) = check_models(load_config("shapes", words))
    assert finding.level == "stop" and RECORD in finding.found


def test_a_record_names_no_file_outside(bucket):
    files = {"../../evil": {"bytes": 1, "sha256": "0"}}
    record = {"format": "dopsd-model", "source": "a", "files": files}
    storage.write_bytes(f"{bucket}/evil/{RECORD}", json.dumps(record).encode())
    with pytest.raises(ModelError, match="allowed: a path inside the folder"):
        local_copy(f"{bucket}/evil", "model.base")
