"""What `adapters` and `lora.modules_to_train` stand for in each family's transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dopsd.errors import ModelError
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.models.trained import TrainableParameters, match_parameters
from tests.helpers.tiny import make_config
from tests.helpers.tiny_flux2 import make_flux2_config

BESIDE = {"adapters": "lora+modules", "preview": {"samples": 0}}
WHOLE = {
    "adapters": "full",
    "preview": {"samples": 0},
    "checkpoint": {"every_steps": 0, "every_minutes": 0},
}


@pytest.fixture(params=["z_image", "flux2_klein"])
def made(request, tiny_base: Path, tiny_flux2: Path) -> Any:
    """Makes (trained set, bare transformer) of a config's sections."""

    def make(**sections: Any) -> tuple[TrainableParameters, nn.Module]:
        if request.param == "z_image":
            config = make_config(tiny_base, **sections)
        else:
            config = make_flux2_config(tiny_flux2, **sections)
        family = FAMILIES[config.model.family](config.model.base)
        return TrainableParameters(config, family), family.load_transformer(torch.float32, "cpu")

    return make


def test_all_weights_are_all_that_a_checkpoint_of_diffusers_holds(made) -> None:
    trained, transformer = made(**WHOLE)
    assert trained.describe(transformer) == {"all weights": len(transformer.state_dict())}
    trained.prepare(transformer, (STUDENT,))
    found = trained.parameters(transformer, STUDENT)
    assert found.keys() == transformer.state_dict().keys()
    assert all(parameter.requires_grad for parameter in found.values())
    trained.prepare(transformer, (TEACHER,))
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_norms_and_embedders_are_found_and_nothing_else_beside_the_lora(made) -> None:
    trained, transformer = made(**BESIDE)
    names = {
        name for entry in ("norms", "embedders") for name in match_parameters(transformer, entry)
    }
    describe = trained.describe(transformer)
    assert describe["norms"] > 4 and describe["embedders"] > 3
    for name in names:
        assert "norm" in name or "embed" in name, name
    values = {name: transformer.get_parameter(name).clone() for name in names}
    trained.prepare(transformer, (STUDENT,))
    found = trained.parameters(transformer, STUDENT)
    assert {name for name in found if ".lora_" not in name} == names
    assert {n for n, p in transformer.named_parameters() if p.requires_grad} == {
        n.replace(".weight", ".student.weight") if ".lora_" in n else n for n in found
    }
    assert all(torch.equal(found[name], values[name]) for name in names)


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ({"modules_to_train": []}, "lora.modules_to_train: empty, allowed: at least one name"),
        (
            {"modules_to_train": ["norms", "nowhere"]},
            "lora.modules_to_train: nowhere match no parameter; allowed: norms, embedders, or",
        ),
        (
            {"modules_to_train": ["to_q"]},
            r"lora.modules_to_train: to_q holds .*to_q.weight, which lora.targets adapts; allowed:",
        ),
    ],
)
def test_modules_that_cannot_be_trained_are_refused(made, lora: dict, line: str) -> None:
    trained, transformer = made(**BESIDE, lora=lora)
    with pytest.raises(ModelError, match=line):
        trained.describe(transformer)
    with pytest.raises(ModelError, match=line):
        trained.prepare(transformer, (STUDENT,))
