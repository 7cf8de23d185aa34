"""The learner under DeepSpeed against one plain loop: losses, gradient norms, weights, EMA.

AdamW forgives a wrong scale of the gradient; its norm and the loss do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dopsd.models import FAMILIES
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.learner.zero.plain import PlainLoop
from tests.learner.zero.zero_rank import SAVED, STEPS

pytestmark = pytest.mark.integration

KINDS = {"lokr": ".lokr_", "loha": ".hada_"}
STAGES = ("zero1", "zero2", "zero3")
MODULES = ("zero2", "zero3")
POISONED = (("zero1", "bfloat16"), ("zero2", "float32"), ("zero3", "float32"))


def launch(
    world: int,
    base: Path,
    out: Path,
    cases: list[str],
    program: str = "tests.learner.zero.zero_rank",
    environment: dict[str, str] | None = None,
) -> dict[str, dict]:
    words = [str(world), str(free_port()), str(base), str(out), *cases]
    # Not pipes: a rank that fills one up waits for whoever reads the other's, and the other for it.
    files = [out.with_suffix(f".rank{rank}.txt") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", program, str(rank), *words],
            cwd=ROOT,
            env={
                **os.environ,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
            stdout=printed.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, printed in enumerate(files)
    ]
    try:
        for rank in ranks:
            rank.wait(timeout=900)
    finally:
        for rank in ranks:
            rank.kill()
    printed = [file.read_text() for file in files]
    assert all(rank.returncode == 0 for rank in ranks), printed
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def two_ranks_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(tiny_base, two_ranks_folder):
    out = two_ranks_folder / "two.json"
    cases = [f"{stage}:{dtype}" for stage in STAGES for dtype in ("float32", "bfloat16")]
    # Afterwards, so that what they start from has been written.
    again = [f"{case}:resume:{case.replace(':', '-')}-2" for case in cases]
    others = ["zero3:float32:resume:zero1-float32-2", "zero1:float32:resume:zero3-float32-2"]
    poisoned = [f"{stage}:{dtype}:poison" for stage, dtype in POISONED]
    dora = [f"{stage}:float32:dora" for stage in ("zero1", "zero2")]
    modules = [f"{stage}:float32:modules" for stage in MODULES]
    modules += [
        f"{case}:resume:{case.replace(':', '-', 1).replace(':', '-2-')}" for case in modules
    ]
    # What a learner that is killed while DeepSpeed builds leaves behind: torch would wait for it.
    extensions = two_ranks_folder / "extensions"
    (extensions / "deepspeed_shm_comm").mkdir(parents=True)
    (extensions / "deepspeed_shm_comm" / "lock").touch()
    return launch(
        2,
        tiny_base,
        out,
        [*cases, *again, *others, *poisoned, *dora, *modules],
        environment={"TORCH_EXTENSIONS_DIR": str(extensions)},
    )


@pytest.fixture(scope="module")
def plain(tiny_base):
    """K-state loss, one backward, clip, AdamW and EMA, written out on one process."""
    loop = PlainLoop(str(tiny_base))
    weights = loop.weights
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    losses, norms = [], []
    for step in range(STEPS):
        loss, norm = loop.clipped_gradients(step)
        optimizer.step()
        losses.append(loss)
        norms.append(norm)
        for name, weight in weights.items():
            average[name] = 0.9 * average[name] + 0.1 * weight.detach()
    return losses, norms, weights, average


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_plain_loop(stage, two_ranks, plain):
    losses, norms, weights, average = plain
    found = two_ranks[f"{stage}:float32"]
    assert found["loss"] == pytest.approx(losses, rel=1e-4)
    assert found["grad_norm"] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 0.05, "the clip must act, or nobody sees whether it does"
    for name, weight in weights.items():
        trained = torch.tensor(found["weights"][name])
        assert torch.allclose(trained, weight.detach().flatten(), atol=1e-5), name
        teacher = torch.tensor(found["teacher"][name])
        assert torch.allclose(teacher, average[name].flatten(), atol=1e-5), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_published_is_the_masters_cast_for_one_collective(stage, dtype, two_ranks):
    found = two_ranks[f"{stage}:{dtype}"]
    assert found["differ"] == []
    versions = STEPS + 1
    # Only ZeRO-3 has to gather what every other stage holds whole on every rank.
    assert found["collectives"]["student"] == [1 if stage == "zero3" else 0] * versions
    assert found["collectives"]["teacher"] == [1] * versions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_weight_that_is_not_finite_is_known_on_every_rank(stage, dtype, two_ranks):
    found = two_ranks[f"{stage}:{dtype}"]
    assert found["sound"] == "" and found["broken"].startswith("student ")


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_the_plain_loop_and_the_stages_agree(stage, two_ranks, plain):
    losses, norms, weights, _ = plain
    found, first = two_ranks[f"{stage}:bfloat16"], two_ranks["zero1:bfloat16"]
    assert found["loss"] == pytest.approx(losses, rel=0.03)
    assert found["grad_norm"] == pytest.approx(norms, rel=0.1)
    # ZeRO-3 fills remainders up, which rounds differently in bf16.
    assert found["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-2)
    moved = {name: torch.tensor(values) for name, values in found["weights"].items()}
    # fp32 masters: the weights are not on bf16's grid.
    assert any((w != w.bfloat16().float()).any() for w in moved.values())
    # B starts at zero, so its size is how far it has moved. AdamW turns a rounding of a tiny
    # gradient into a whole step of its element, so elements are not compared one by one.
    for name in (name for name in weights if ".lora_B." in name):
        apart = (moved[name] - torch.tensor(first["weights"][name])).abs().mean()
        assert apart < 0.1 * moved[name].abs().mean(), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_learner_is_bitwise_the_uninterrupted_one(stage, two_ranks):
    whole = two_ranks[f"{stage}:float32"]
    resumed = two_ranks[f"{stage}:float32:resume:{stage}-float32-2"]
    for key in ("weights", "teacher", "updates", "saved"):
        assert resumed[key] == whole[key], key
    assert resumed["loss"] == whole["loss"][SAVED:]
    assert resumed["grad_norm"] == whole["grad_norm"][SAVED:]


@pytest.mark.parametrize("stage", MODULES)
def test_modules_beside_a_lora_are_resumed_with_it(stage, two_ranks):
    whole = two_ranks[f"{stage}:float32:modules"]
    resumed = two_ranks[f"{stage}:float32:modules:resume:{stage}-float32-2-modules"]
    assert any(name.endswith(".weight") and ".lora_" not in name for name in whole["weights"])
    assert any(".lora_A." in name for name in whole["weights"])
    for key in ("weights", "teacher", "updates", "saved"):
        assert resumed[key] == whole[key], key
    assert resumed["loss"] == whole["loss"][SAVED:]


@pytest.fixture(scope="module")
def lycoris(tiny_base, tmp_path_factory):
    whole = [f"zero2:float32:{kind}" for kind in KINDS]
    again = [f"zero2:float32:{kind}:resume:zero2-float32-2-{kind}" for kind in KINDS]
    return launch(2, tiny_base, tmp_path_factory.mktemp("lycoris") / "two.json", [*whole, *again])


@pytest.mark.parametrize("kind", KINDS)
def test_lokr_and_loha_train_are_published_and_resumed(kind, lycoris):
    whole = lycoris[f"zero2:float32:{kind}"]
    resumed = lycoris[f"zero2:float32:{kind}:resume:zero2-float32-2-{kind}"]
    assert whole["changed"] == [True] * STEPS and whole["differ"] == []
    for name, values in whole["weights"].items():
        assert KINDS[kind] in name and any(values), name
        if name.endswith(("_w2", "_w2_b")):  # which begins at zero, and the average lags behind
            moved, followed = (torch.tensor(whole[part][name]) for part in ("weights", "teacher"))
            assert 0 < followed.abs().mean() < moved.abs().mean(), name
    for key in ("weights", "teacher", "updates", "saved"):
        assert resumed[key] == whole[key], key
    assert resumed["loss"] == whole["loss"][SAVED:]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_learner_goes_on_in_bf16(stage, two_ranks):
    whole = two_ranks[f"{stage}:bfloat16"]
    resumed = two_ranks[f"{stage}:bfloat16:resume:{stage}-bfloat16-2"]
    assert resumed["saved"] == whole["saved"] and resumed["updates"] == whole["updates"]
    # The CPU's bf16 kernels do not round alike twice in one process.
    assert resumed["loss"] == pytest.approx(whole["loss"][SAVED:], rel=1e-3)
    assert resumed["grad_norm"] == pytest.approx(whole["grad_norm"][SAVED:], rel=1e-2)
    for name in (name for name in whole["weights"] if ".lora_B." in name):
        one, other = (torch.tensor(part["weights"][name]) for part in (whole, resumed))
        assert (one - other).abs().mean() < 0.1 * one.abs().mean(), name


@pytest.mark.parametrize(
    "case", ["zero3:float32:resume:zero1-float32-2", "zero1:float32:resume:zero3-float32-2"]
)
def test_another_zero_stage_takes_the_state(case, two_ranks):
    near(two_ranks[case], two_ranks["zero2:float32"])


def near(found: dict, whole: dict) -> None:
    for part in ("weights", "teacher"):
        for name, values in whole[part].items():
            assert found[part][name] == pytest.approx(values, abs=1e-5), (part, name)


@pytest.mark.parametrize(("stage", "dtype"), POISONED)
def test_a_step_that_is_not_finite_changes_nothing(stage, dtype, two_ranks):
    found = two_ranks[f"{stage}:{dtype}:poison"]
    assert found["changed"] == [True, False, True] and found["skipped"] == [False, True, False]
    assert found["updates"] == 2 and found["loss"][1] is None
    assert all(value is not None and value >= 0 for value in found["grad_norm"][::2])
    assert found["micro_batches"] == [[0, 2], [0], [0]], "rank 0's, without padding"


def test_dora_trains_its_magnitudes_and_the_ema_follows(two_ranks, tiny_base):
    found = two_ranks["zero1:float32:dora"]
    near(two_ranks["zero2:float32:dora"], found)
    assert found["changed"] == [True] * STEPS
    names = [name for name in found["weights"] if name.endswith(".lora_magnitude_vector")]
    assert len(names) == len(found["weights"]) / 3
    base = FAMILIES["z_image"](str(tiny_base)).load_transformer(torch.float32, "cpu")
    for name in names:
        start = base.get_submodule(name.removesuffix(".lora_magnitude_vector")).weight.norm(dim=1)
        moved = torch.tensor(found["weights"][name]) - start
        followed = torch.tensor(found["teacher"][name]) - start
        assert moved.abs().max() > 1e-4, name
        assert 0 < followed.abs().mean() < moved.abs().mean(), name


def test_one_rank_is_the_same(tiny_base, plain, two_ranks, two_ranks_folder, tmp_path):
    losses, norms, _, _ = plain
    (tmp_path / "zero2-float32-2").symlink_to(two_ranks_folder / "zero2-float32-2")
    cases = ["zero2:float32", "zero2:float32:resume:zero2-float32-2"]
    results = launch(1, tiny_base, tmp_path / "one.json", cases)
    found = results["zero2:float32"]
    near(results[cases[1]], found)
    assert found["loss"] == pytest.approx(losses, rel=1e-4)
    assert found["grad_norm"] == pytest.approx(norms, rel=1e-4)


def test_eight_bit_moments_train_and_resume(tiny_base, plain, tmp_path):
    pytest.importorskip("bitsandbytes")
    _, _, weights, _ = plain
    cases = [f"{stage}:float32:adamw8bit" for stage in ("zero1", "zero3")]
    again = [f"{case}:resume:{case.split(':')[0]}-float32-1-adamw8bit" for case in cases]
    results = launch(1, tiny_base, tmp_path / "one.json", [*cases, *again])
    for case, resumed in zip(cases, again):
        for name in (name for name in weights if ".lora_B." in name):
            found, exact = torch.tensor(results[case]["weights"][name]), weights[name].flatten()
            assert not torch.equal(found, exact)
            assert (found - exact).abs().mean() < 0.2 * exact.abs().mean(), name
        for key in ("updates", "saved"):
            assert results[resumed][key] == results[case][key], (case, key)
        for name, values in results[case]["weights"].items():
            assert results[resumed]["weights"][name] == pytest.approx(values, abs=1e-6), name
