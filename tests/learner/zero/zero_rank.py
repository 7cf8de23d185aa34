"""One rank of test_engine.py: the product's learner on made-up training batches.

Run as ``python -m tests.learner.zero.zero_rank RANK WORLD PORT BASE OUT STAGE:DTYPE[:WORD]...``;
rank 0 writes losses, gradient norms and weights of each case to ``OUT``, and the state after SAVED
steps into a folder beside it. The word ``resume`` starts from the state that lies there, ``poison``
makes a target of step 1 infinite, ``adamw8bit`` takes bitsandbytes' optimizer, ``lokr`` and
``loha`` train those, ``dora`` trains DoRA with rank-stabilised scaling, ``modules`` norms and
embedders beside the LoRA; ``prodigy`` takes Prodigy for more steps, ``pieces`` has ZeRO-3 step the
weights in several, ``reset`` trains after something else was trained in the same engine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from dopsd.checkpoint.learner_state import LearnerState
from dopsd.config import RunConfig
from dopsd.coordinator.admission import rank_share
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.learner.learner import Learner, LearnerMicroBatch
from dopsd.learner.student import build_student
from dopsd.learner.weights import ReplicatedWeights
from dopsd.learner.zero.deepspeed_private import flat_parts, own_part, owned_span
from dopsd.learner.zero.engine import ZeroEngine, engine_config, read_preset
from dopsd.learner.zero.optimizer_state import scalars, updates_taken
from dopsd.method.terms import stored_terms
from dopsd.models import FAMILIES
from dopsd.models.checksum import checksum
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.ray_cluster.process import set_up
from dopsd.records import SampleInfo, TrainingBatch
from dopsd.run_folder.ledger import TrainedShare
from tests.helpers.tiny import make_config, make_context

STEPS, STATES, FULL, SAVED = 3, 2, 3, 2
PRODIGY = {"optimizer": "prodigy", "lr": 1.0, "d0": 1e-4, "weight_decay": 0.1}
PRODIGY_STEPS, PRODIGY_SAVED = 20, 16
ROWS = {0: (2, 2, 1), 1: (2, 1), 2: (1,)}
"""Rows of each micro-batch of a step: a remainder, and steps that are padded with zero weight."""


def case_config(base: str, stage: str, dtype: str, **learner: Any) -> RunConfig:
    return make_config(
        base,
        model={"dtype": dtype},
        lora={"rank": 4, "alpha": 8},
        method={"steps": STATES, "ema_decay": 0.9},
        learner={
            "steps": STEPS,
            "global_batch": 2 * FULL,
            "micro_batch": 2,
            "lr": 1e-3,
            "max_grad_norm": 0.05,
            "deepspeed": stage,
            **learner,
        },
    )


def batches(step: int) -> list[TrainingBatch]:
    """The scored micro-batches of a step, the same in every process."""
    rows = ROWS[step % len(ROWS)]
    made = []
    for index, count in enumerate(rows):
        generator = torch.Generator().manual_seed(100 * step + index)

        def draw(rows: int = count, source: torch.Generator = generator) -> Tensor:
            return torch.randn(STATES, rows, 4, 8, 8, generator=source)

        names = tuple(f"{step}-{index}-{row}" for row in range(count))
        info = SampleInfo(step, index, names, names, 16, 16, sum(rows))
        context = make_context((5, 9)[:count], 10 * step + index)
        sigmas = torch.tensor([1.0, 0.6])
        made.append(TrainingBatch(info, 0, 0, draw(), sigmas, context, draw(), sigmas.square()))
    return made


def share_of(
    made: list[TrainingBatch], dtype: str, rank: int, world: int
) -> Iterator[LearnerMicroBatch]:
    """What a learner trains of the micro-batches of a step, in the compute dtype."""
    for index, real in rank_share(len(made), FULL, rank, world):
        batch = made[index]
        batch.student = batch.student.to("cpu", getattr(torch, dtype))
        yield LearnerMicroBatch(stored_terms(batch), batch.info, real, 0, 0, {})


class RecordingClient:
    """The coordinator as a learner sees it: keeps what it hears; ``save(state)`` is the test's."""

    def __init__(self, save: Callable = lambda state: None) -> None:
        self.lines: list[dict] = []
        self.shares: list[TrainedShare] = []
        self._save = save

    def report(self, step: int, metrics: dict) -> None:
        self.lines.append(metrics)

    def record(self, step: int, share: TrainedShare) -> None:
        self.shares.append(share)

    def tell(self, spans: list) -> None:
        pass

    def save(self, state, gather: Callable) -> None:
        self._save(state)


def run_case(base: str, folder: Path, case: str, rank: int, world: int) -> dict:
    stage, dtype, *words = case.split(":")
    prodigy = "prodigy" in words
    steps, saved = (PRODIGY_STEPS, PRODIGY_SAVED) if prodigy else (STEPS, SAVED)
    config = case_config(base, stage, dtype, **(PRODIGY if prodigy else {}))
    if "adamw8bit" in words:
        config.learner.optimizer = "adamw8bit"
    if "dora" in words:
        config.lora.dora = config.lora.rank_stabilized = True
    for kind in {"lokr", "loha"}.intersection(words):
        config.lora.kind = kind  # type: ignore[assignment]
    if "modules" in words:
        config.adapters = "lora+modules"
    family = FAMILIES["z_image"](base)
    student = build_student(config, family, "cpu", with_teacher=False)
    accumulation = -(-FULL // world) * STATES
    preset = read_preset(stage)
    if "pieces" in words:
        preset["zero_optimization"]["sub_group_size"] = 500
    engine = ZeroEngine(student, engine_config(config, preset, accumulation), config.learner)
    first = engine.full_weights(STUDENT)

    def micro_batches(step: int) -> Iterator[LearnerMicroBatch]:
        made = batches(step)
        if "poison" in words and step == 1:
            made[1].target_velocity[0, 0, 0, 0, 0] = float("inf")
        return share_of(made, dtype, rank, world)

    def save(state: LearnerState) -> None:
        if rank == 0:
            place = folder / "-".join([stage, dtype, str(world), *words])
            place.mkdir(exist_ok=True)
            for name, payload in state.to_files().items():
                (place / name).write_bytes(payload)

    weights_at: list[dict] = []
    collectives: dict[str, list[int]] = {STUDENT: [], TEACHER: []}
    differ: list[str] = []
    client = RecordingClient(save)

    def publish(version: int, weights: ReplicatedWeights) -> CheckpointRequest:
        for adapter, counts in collectives.items():
            with CommDebugMode() as calls:
                flat = weights.flat(adapter)
            counts.append(calls.get_total_counts())
            whole = {name: t.to(flat.dtype) for name, t in weights.full(adapter).items()}
            if checksum(weights.layout.views(flat)) != checksum(whole):
                differ.append(f"{adapter} {version}")
        weights_at.append(weights.full(STUDENT))
        return CheckpointRequest(
            save=version == saved
            and words
            in ([], *([word] for word in ("adamw8bit", "modules", "prodigy", "lokr", "loha")))
        )

    if "reset" in words:
        Learner(
            config, engine, micro_batches, RecordingClient(), lambda *_: CheckpointRequest()
        ).run(0, STEPS)
        engine.reset(first)
    learner = Learner(config, engine, micro_batches, client, publish)
    start = 0
    if "resume" in words:
        place = folder / words[words.index("resume") + 1]
        files = {file.name: file.read_bytes() for file in place.iterdir()}
        learner.restore(LearnerState.from_files(files))
        start = saved
    assert learner.run(start, steps)
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(weights_at)]
    updates = updates_taken(engine.zero)
    sound = learner.weights.nonfinite()
    student, teacher = (learner.weights.full(adapter) for adapter in (STUDENT, TEACHER))
    found = {
        "sound": sound,
        "collectives": collectives,
        "differ": differ,
        "loss": [line.get("loss") for line in client.lines],
        "grad_norm": [line.get("grad_norm") for line in client.lines],
        "changed": changed,
        "saved": checksum(weights_at[saved - start]),
        "effective_lr": [line.get("effective_lr") for line in client.lines],
        "scalars": scalars(engine.zero),
        "state_bytes": state_bytes(engine),
        "pieces": len(flat_parts(engine.zero)),
        "updates": updates,
        "micro_batches": [sorted(share.micro_batches) for share in client.shares],
        "skipped": [share.skipped for share in client.shares],
        "weights": {name: t.flatten().tolist() for name, t in student.items()},
        "teacher": {name: t.flatten().tolist() for name, t in teacher.items()},
    }
    return found | {"broken": break_weights(learner, rank, world)}


def state_bytes(engine: ZeroEngine) -> int:
    """Of masters, moments and average on this rank."""
    flats = flat_parts(engine.zero)
    kept = [*flats, *(t for flat in flats for t in engine.zero.optimizer.state[flat].values())]
    return sum(t.nbytes for t in kept if isinstance(t, Tensor) and t.dim())


def break_weights(learner: Learner, rank: int, world: int) -> str:
    """What is said when a weight of the last rank's part becomes infinite. Collective."""
    if rank == world - 1:
        parameters = learner.engine.trained().values()
        owned = next(p for p in parameters if owned_span(p)[1] > owned_span(p)[0])
        own_part(owned, None).detach().flatten()[:1] = torch.inf
    return learner.weights.nonfinite()


def main(run_case: Callable[[str, Path, str, int, int], dict] = run_case) -> None:
    rank, world, port = (int(word) for word in sys.argv[1:4])
    base, out, *cases = sys.argv[4:]
    set_up("cpu")
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    folder = Path(out).parent
    results = {case: run_case(base, folder, case, rank, world) for case in cases}
    if rank == 0:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
