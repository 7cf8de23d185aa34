"""Runs of all weights, saved as the learners' own slices and resumed from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dopsd.checkpoint.folder import newest_good
from tests.learner.resume_rank import SAVED, STEPS, place_of
from tests.learner.zero.test_engine import launch

pytestmark = pytest.mark.integration

WHOLE = ("zero3:float32", "zero2:float32", "zero1:bfloat16")
AGAIN = tuple(f"{case}:{place_of(case, 2)}" for case in WHOLE)
OTHERS = (f"zero1:float32:{place_of(WHOLE[0], 2)}", f"zero3:float32:{place_of(WHOLE[1], 2)}")
PROGRAM = "tests.learner.resume_rank"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def ranks(tiny_base: Path, folder: Path) -> dict[str, dict]:
    return launch(2, tiny_base, folder / "two.json", [*WHOLE, *AGAIN, *OTHERS], PROGRAM)


def state(folder: Path, case: str, world: int = 2, when: str = "") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{place_of(case, world)}{when}.safetensors")


@pytest.mark.parametrize("whole, resumed", zip(WHOLE[:2], AGAIN[:2]))
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(whole, resumed, ranks, folder) -> None:
    one, other = ranks[whole], ranks[resumed]
    assert other["loss"] == one["loss"][SAVED:]
    assert other["grad_norm"] == one["grad_norm"][SAVED:]
    assert other["updates"] == one["updates"] == STEPS
    # The checkpoint's own version too, and its teacher, which is older than the state.
    assert other["versions"] == list(range(SAVED - 1, STEPS + 1))
    for version in range(SAVED, STEPS + 1):
        assert other["checksums"][str(version)] == one["checksums"][str(version)], version
    found, expected = state(folder, resumed), state(folder, whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_bf16_weights_are_the_masters_when_a_run_goes_on(ranks, folder) -> None:
    whole, resumed = WHOLE[2], AGAIN[2]
    found = state(folder, resumed, when="-start")
    for name in (name for name in found if name.endswith(".compute")):
        master = found[name.replace(".compute", ".master")]
        assert torch.equal(found[name], master.bfloat16()), name
    assert any((t != t.bfloat16().float()).any() for n, t in found.items() if n.endswith(".master"))
    # The CPU's bf16 kernels do not round alike twice in one process.
    assert ranks[resumed]["loss"] == pytest.approx(ranks[whole]["loss"][SAVED:], rel=1e-2)


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in (n for n in expected if n.endswith((".master", ".average"))):
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("case", OTHERS)
def test_another_zero_stage_goes_on(case, ranks, folder) -> None:
    near(state(folder, case), state(folder, WHOLE[0]))


def test_another_number_of_learners_goes_on(tiny_base, ranks, folder) -> None:
    case = f"zero2:float32:{place_of(WHOLE[0], 2)}"
    launch(1, tiny_base, folder / "one.json", [case], PROGRAM)
    near(state(folder, case, world=1), state(folder, WHOLE[0]))


def test_no_rank_writes_more_than_its_part(ranks, folder) -> None:
    place = folder / place_of(WHOLE[0], 2) / f"step-{SAVED:06d}"
    sizes = [path.stat().st_size for path in place.glob("learner-*.safetensors")]
    masters = [t for n, t in state(folder, WHOLE[0]).items() if n.endswith(".master")]
    elements = sum(master.numel() for master in masters)
    assert len(sizes) == 2 and sum(sizes) < 4 * 4 * elements + 2**16 * 2
    assert max(sizes) < 0.51 * sum(sizes)
    # Version 2 and 3 have one teacher, whose buckets lie there once.
    policies = json.loads((place / "policies.json").read_text())
    two, three = (policies[version]["files"] for version in ("2", "3"))
    assert two["teacher"] == three["teacher"] and two["student"] != three["student"]


@pytest.mark.parametrize("damage", ["torn", "one bit", "missing"])
def test_a_damaged_file_of_a_rank_is_refused_by_name(damage, ranks, folder, tmp_path) -> None:
    shutil.copytree(folder / place_of(WHOLE[0], 2), tmp_path / "root")
    place = tmp_path / "root" / f"step-{SAVED:06d}"
    path = sorted(place.glob("learner-*.safetensors"))[1]
    payload = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(payload[:-7] if damage == "torn" else payload[:-1] + b"\x7f")
    found, refused = newest_good(str(tmp_path / "root"))
    assert found is None and len(refused) == 1 and path.name in refused[0]
