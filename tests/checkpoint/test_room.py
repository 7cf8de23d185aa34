"""Room on the disk: what a run needs at least, against what it writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dopsd.checkpoint.learner_state import LearnerState
from dopsd.checkpoint.room import RoomNeeded, refuse_without_room, shortage
from dopsd.errors import ConfigError
from dopsd.export import lora_file
from dopsd.files import disk
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.layers import STUDENT
from dopsd.models.trained import TrainableParameters
from tests.helpers.bundles import made_bundle
from tests.helpers.tiny import make_config


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A way to say how much is free on every disk."""

    def say(size: int) -> None:
        usage = type("Usage", (), {"free": size})
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)

    return say


VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"lora": {"dora": True}},
    {"adapters": "lora+modules", "lora": {"modules_to_train": ["norms"]}},
    {"adapters": "full", "source": "fused", "method": {"teacher": "live"}},
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trained_weight_is_counted(tiny_base, variant) -> None:
    config = make_config(str(tiny_base), **variant)
    family = FAMILIES["z_image"](str(tiny_base))
    trained, bare = TrainableParameters(config, family), family.skeleton()
    counted = trained.numel(bare)
    transformer = family.load_transformer(torch.float32, "cpu")
    trained.prepare(transformer, (STUDENT,))
    assert counted == sum(p.numel() for p in trained.parameters(transformer, STUDENT).values())


def test_a_lora_needs_what_its_files_take(tiny_base) -> None:
    config = make_config(str(tiny_base), lora={"rank": 64, "alpha": 64})
    state = {
        f"layers.{index}.to_q.{part}.weight": torch.zeros(64, 2048)
        for index in range(4)
        for part in ("lora_A", "lora_B")
    }
    needed = RoomNeeded.of(config, sum(tensor.numel() for tensor in state.values()))
    moments = {f"{name}.{key}": state[name] for name in state for key in ("exp_avg", "exp_avg_sq")}
    stored: list[bytes] = []
    made_bundle(1, state, state, DTYPES[config.model.dtype], stored.append)
    written = [*LearnerState(1, state, state, 1, moments).to_files().values(), *stored]
    exported = [lora_file(state, 64, 64, {})] * 3
    for size, files in ((needed.checkpoint, written), (needed.export, exported)):
        assert size <= sum(map(len, files)) < 1.05 * size


def test_a_disk_that_cannot_hold_them_is_refused(tiny_base, tmp_path, free) -> None:
    config = make_config(str(tiny_base), run={"folder": str(tmp_path / "run")})
    needed = RoomNeeded(checkpoint=3 * 10**6, export=10**6)
    free(4 * 10**6)
    refuse_without_room(config, needed, resume=False)
    free(4 * 10**6 - 1)
    with pytest.raises(
        ConfigError,
        match=r"^run\.folder: .*/run: disk /.*: 4\.0 MB free, but a checkpoint and the export take",
    ):
        refuse_without_room(config, needed, resume=False)
    refuse_without_room(config, needed, resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lora.safetensors").write_bytes(b"x")
    refuse_without_room(config, needed, resume=False)  # what the older run leaves goes first
    free(10**6 - 1)
    with pytest.raises(ConfigError, match="the export takes 1"):
        refuse_without_room(config, needed, resume=True)
    config.run.folder = "s3://bucket/run"
    refuse_without_room(config, needed, resume=False)


def test_what_is_short_is_told_with_the_disk(tmp_path, free) -> None:
    needed = RoomNeeded(checkpoint=1, export=10**6)
    free(3 * 10**6)
    assert shortage(str(tmp_path), 2 * 10**6, needed) is None
    free(3 * 10**6 - 1)
    told = shortage(str(tmp_path), 2 * 10**6, needed)
    assert told is not None and "3.0 MB free, but the next checkpoint and the export take" in told
    assert shortage("s3://bucket/run", 10**9, needed) is None
