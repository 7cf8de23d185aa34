"""One rank of tests/runtime/test_zero.py: the product's learner on made-up training batches.

Run as ``python -m tests.runtime.zero_rank RANK WORLD PORT BASE OUT STAGE:DTYPE...``; rank 0 writes
losses, gradient norms and weights of each case to ``OUT``.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.method.terms import stored_terms
from dopsd.models import FAMILIES
from dopsd.runtime.admission import rank_share
from dopsd.runtime.learner import Learner, Micro
from dopsd.runtime.student import build_student
from dopsd.runtime.zero import ZeroEngine, engine_config, read_preset
from dopsd.types import SampleInfo, TrainingBatch
from tests.tiny import make_config, make_context

STEPS, STATES, FULL = 3, 2, 3
ROWS = {0: (2, 2, 1), 1: (2, 1), 2: (1,)}
"""Rows of each micro-batch of a step: a remainder, and steps that are padded with zero weight."""


def case_config(base: str, stage: str, dtype: str) -> RunConfig:
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
            "clip": 0.05,
            "deepspeed": stage,
        },
    )


def batches(step: int) -> list[TrainingBatch]:
    """The scored micro-batches of a step, the same in every process."""
    rows = ROWS[step]
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


def run_case(base: str, stage: str, dtype: str, rank: int, world: int) -> dict:
    config = case_config(base, stage, dtype)
    family = FAMILIES["z_image"](base)
    student = build_student(config, family, "cpu", with_teacher=False)
    accumulation = -(-FULL // world) * STATES
    engine = ZeroEngine(student, engine_config(config, read_preset(stage), accumulation))

    def micro_batches(step: int):
        made = batches(step)
        for index, real in rank_share(len(made), FULL, rank, world):
            batch = made[index]
            batch.student = batch.student.to("cpu", getattr(torch, dtype))
            yield Micro(stored_terms(batch), batch.info.step_samples, real, 0, 0, {})

    def total(value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    lines: list[dict] = []
    learner = Learner(
        config,
        engine,
        micro_batches,
        lambda version, weights, teacher: None,
        lambda step, metrics: lines.append(metrics),
        total,
    )
    learner.run(0, STEPS)
    return {
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "weights": {name: t.flatten().tolist() for name, t in learner.student.items()},
        "teacher": {name: t.flatten().tolist() for name, t in learner.ema.tensors.items()},
    }


def main() -> None:
    rank, world, port = (int(word) for word in sys.argv[1:4])
    base, out, *cases = sys.argv[4:]
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    results = {case: run_case(base, *case.split(":"), rank, world) for case in cases}
    if rank == 0:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
