"""One rank of tests/learner/test_full.py: all weights trained by the product's learner.

Run as zero_rank.py is, with cases STAGE:DTYPE. What can only be seen while the ranks run (what was
published against what is gathered, memory during publication) is measured here and judged there.
"""

from __future__ import annotations

import gc
import time
import weakref
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from dopsd.config import RunConfig
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.learner.learner import Learner
from dopsd.learner.publisher import BucketPublisher
from dopsd.learner.student import build_student
from dopsd.learner.weights import ShardedWeights
from dopsd.learner.zero.engine import ZeroEngine, engine_config, read_preset
from dopsd.learner.zero.optimizer_state import AVERAGE
from dopsd.method.ema import Ema
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT, TEACHER
from dopsd.policy.buckets import cut, unpack_bucket
from tests.helpers.tiny import make_config
from tests.learner.zero.zero_rank import FULL, STATES, RecordingClient, batches, main, share_of

LR = 2e-4
"""AdamW moves an element by about this in a step however small its gradient is: where that is no
more than rounding, another CPU moves it otherwise (seen at 1e-3: by 2e-5)."""
STEPS, EVERY, DECAY = 5, 2, 0.9
LIMIT = 96 * 2**10
"""Bytes of a bucket here: the tiny model has dozens of them."""


def full_config(base: str, stage: str = "zero3", dtype: str = "float32") -> RunConfig:
    return make_config(
        base,
        adapters="full",
        model={"dtype": dtype},
        method={"steps": STATES, "ema_decay": DECAY, "teacher_sync_every": EVERY},
        preview={"samples": 0},
        checkpoint={"every_steps": 0, "every_minutes": 0},
        learner={
            "steps": STEPS,
            "global_batch": 2 * FULL,
            "micro_batch": 2,
            "lr": LR,
            "max_grad_norm": 0.5,
            "deepspeed": stage,
        },
    )


def weights_file(case: str) -> str:
    """Where rank 0 leaves the masters of a case, beside its results."""
    return case.replace(":", "-") + ".safetensors"


def live_bytes() -> int:
    """Bytes of all tensors that were made since ``gc.freeze()``, each storage once."""
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def settled_bytes(bound: int) -> int:
    """``live_bytes()``; gloo's thread lets go of what it has gathered a moment later."""
    for _ in range(50):
        if (live := live_bytes()) <= bound:
            break
        time.sleep(0.02)
    return live


def run_case(base: str, folder: Path, case: str, rank: int, world: int) -> dict:
    stage, dtype = case.split(":")
    gc.set_threshold(700, 10, 10)  # Python's own (see tests/helpers/quick_start): garbage is live
    config = full_config(base, stage, dtype)
    family = FAMILIES["z_image"](base)
    student = build_student(config, family, "cpu", with_teacher=False)
    accumulation = -(-FULL // world) * STATES
    settings = engine_config(config, read_preset(stage), accumulation)
    engine = ZeroEngine(student, settings, config.learner)

    published: list[dict] = []
    payloads: list[bytes] = []
    peak = kept = bound = 0
    measuring = False
    before: list[weakref.ref] = []
    plain: list[Ema] = []

    def put(payload: bytes) -> int:
        nonlocal peak
        if measuring:
            peak = max(peak, settled_bytes(bound))
        payloads.append(bytes(payload))  # as a store does: its memory is used again
        return len(payloads) - 1

    def watched(flats, adapter: str):
        """The same buckets; counts those that are alive when the next is there."""
        nonlocal kept
        for layout, flat in flats(adapter):
            kept += sum(each() is not None for each in before)
            before[:] = [weakref.ref(flat)]
            yield layout, flat
            del flat

    def publish(version: int, weights: ShardedWeights) -> CheckpointRequest:
        nonlocal bound, measuring, publisher
        if publisher is None:
            weights.buckets = cut(weights.sizes, LIMIT)
            # On the device, and its copy on the host with a header.
            bound = 2 * max(LIMIT, max(weights.sizes.values())) + 2**14
            weights.flats = partial(watched, weights.flats)
            publisher = BucketPublisher(config.method, weights, put, speaks=rank == 0)
        measuring = version == EVERY  # both are published of it; looking takes long
        if measuring:
            gc.collect()
            gc.freeze()
        bundle = publisher.bundle(version)
        gc.unfreeze()
        gathered = engine.full_weights(STUDENT)
        if plain:
            plain[0].update(gathered)
        else:
            plain.append(Ema(gathered, DECAY))
        if rank:
            return CheckpointRequest()
        sent = {
            adapter: {
                name: tensor
                for ref in bundle.refs[adapter]
                for name, tensor in unpack_bucket(payloads[ref]).items()
            }
            for adapter in (STUDENT, TEACHER)
        }
        cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in gathered.items()}
        average = {n: t.to(getattr(torch, dtype)) for n, t in plain[0].tensors.items()}
        far = [(sent[TEACHER][n] - t).abs().max() for n, t in average.items()]
        published.append(
            {
                "version": version,
                "teacher_version": bundle.teacher_version,
                "names": sorted(sent[STUDENT]) == sorted(cast),
                "bitwise": all(torch.equal(sent[STUDENT][n], cast[n]) for n in cast),
                "teacher_refs": list(bundle.refs[TEACHER]),
                "teacher_apart": float(max(far)),
                "checksums": len(bundle.checksums),
                "modules": bundle.modules,
            }
        )
        return CheckpointRequest()

    publisher: BucketPublisher | None = None
    client = RecordingClient()
    learner = Learner(
        config,
        engine,
        lambda step: share_of(batches(step % 3), dtype, rank, world),
        client,
        publish,
    )
    assert learner.run(0, STEPS)
    weights = learner.weights
    assert isinstance(weights, ShardedWeights)
    masters = engine.full_weights(STUDENT)
    if rank == 0:
        save_file(masters, folder / weights_file(case))
    states = engine.engine.optimizer.optimizer.state.values()
    return {
        "loss": [line["loss"] for line in client.lines],
        "grad_norm": [line["grad_norm"] for line in client.lines],
        "published": published,
        "own_average": sum(state[AVERAGE].numel() for state in states),
        "elements": sum(tensor.numel() for tensor in masters.values()),
        "model_bytes": sum(weights.sizes.values()),
        "largest": max(sum(weights.sizes[n] for n in names) for names in weights.buckets),
        "buckets": len(weights.buckets),
        "peak": peak,
        "kept": kept,
    }


if __name__ == "__main__":
    main(run_case)
