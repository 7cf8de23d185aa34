"""A torchvision of another build is named, since transformers does not name it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers

from dopsd.config import load_config
from dopsd.contexts.image_processor import load_image_processor
from dopsd.models.pretrained import MissingWeights
from dopsd.models.torchvision import torchvision_problem


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of one that is pretended to be installed."""
    file = tmp_path / "torchvision" / "__init__.py"
    file.parent.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    return file


def test_one_that_loads_is_no_problem(torchvision: Path) -> None:
    torchvision.touch()
    assert torchvision_problem() is None
    del sys.modules["torchvision"]


def test_one_of_another_build_is_told_with_torchs_version(torchvision: Path) -> None:
    torchvision.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    problem = torchvision_problem()
    assert problem is not None and "does not fit torch 2." in problem
    assert problem.endswith("operator torchvision::nms does not exist")


def test_an_encoder_that_it_breaks_says_so(torchvision: Path, monkeypatch) -> None:
    torchvision.write_text("raise RuntimeError('operator torchvision::nms does not exist')")

    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("Could not import module 'AutoImageProcessor'")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", broken)
    with pytest.raises(MissingWeights, match=r"^model.vlm: no image processor: torchvision .*nms"):
        load_image_processor(load_config("shapes"))
