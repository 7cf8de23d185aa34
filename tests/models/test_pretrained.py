"""A base is a pipeline of its family, or it is refused where it is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dopsd.driver.setup.checks import check_context
from dopsd.errors import ModelError
from dopsd.models import Flux2Klein, ZImage, resolve_vlm
from tests.helpers.tiny import make_config


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is never asked for on the hub."""

    def asked(*arguments: object, **options: object) -> str:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"^model\.base: {tmp_path}: no model_index"):
        ZImage(str(tmp_path))
    with pytest.raises(ModelError, match=r"^model\.vlm: missing"):
        resolve_vlm(str(tmp_path), None)


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    index = {"transformer": ["diffusers", ZImage.transformer_class]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"^model\.base: {tmp_path}: no vae/config\.json"):
        ZImage(str(tmp_path)).latent_shape(32, 32)


def test_a_pipeline_of_another_family(tiny_base: Path, tiny_flux2: Path) -> None:
    line = rf"^model\.base: {tiny_base}: its transformer is ZImageTransformer2DModel .*Flux2Tr"
    with pytest.raises(ModelError, match=rf"{line}.*, which the family flux2_klein is"):
        Flux2Klein(str(tiny_base))
    with pytest.raises(ModelError, match=r"is Flux2Transformer2DModel .* the family z_image is"):
        check_context(make_config(tiny_flux2))


def test_a_pipeline_without_a_transformer(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ModelError, match="its transformer is missing"):
        ZImage(str(tmp_path))
