"""One rank of tests/learner/test_full_resume.py: a run of all weights, saved and resumed.

Run as zero_rank.py is, with cases STAGE:DTYPE, which save after SAVED steps, and
STAGE:DTYPE:FOLDER, which go on from the checkpoint that another case left.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from dopsd.checkpoint.folder import newest_good, write_checkpoint
from dopsd.checkpoint.learner_state import PREFIX, SlicedState, write_state
from dopsd.checkpoint.parts import CheckpointParts
from dopsd.checkpoint.policies import bucket_files, restored_bundles
from dopsd.checkpoint.slices import SliceReader
from dopsd.coordinator.messages import CheckpointRequest
from dopsd.files import storage
from dopsd.learner.learner import Learner
from dopsd.learner.publisher import BucketPublisher
from dopsd.learner.student import build_student
from dopsd.learner.weights import ShardedWeights
from dopsd.learner.zero.engine import ZeroEngine, engine_config, read_preset
from dopsd.learner.zero.optimizer_state import optimizer_state, updates_taken
from dopsd.models import FAMILIES
from dopsd.models.lora.layers import STUDENT
from dopsd.policy.buckets import cut
from dopsd.policy.bundle import Bundle
from tests.helpers.parts import InProcessWriter
from tests.learner.full_rank import LIMIT, STEPS, full_config
from tests.learner.zero.zero_rank import FULL, STATES, RecordingClient, batches, main, share_of

SAVED = 3
"""With a teacher of version 2, which nothing but its published buckets still holds."""


def place_of(case: str, world: int) -> str:
    """Where a case leaves its checkpoints, and its weights with an ending."""
    return f"{case.replace(':', '-')}-{world}"


def run_case(base: str, folder: Path, case: str, rank: int, world: int) -> dict:
    stage, dtype, *source = case.split(":")
    config = full_config(base, stage, dtype)
    family = FAMILIES["z_image"](base)
    student = build_student(config, family, "cpu", with_teacher=False)
    settings = engine_config(config, read_preset(stage), -(-FULL // world) * STATES)
    engine = ZeroEngine(student, settings, config.learner)
    root = str(folder / (source[0] if source else place_of(case, world)))
    store: list[bytes] = []
    checksums: dict[int, dict[str, str]] = {}
    bundles: dict[int, Bundle] = {}
    publisher: BucketPublisher | None = None

    def put(payload: bytes) -> int:
        store.append(bytes(payload))  # as a store does: its memory is used again
        return len(store) - 1

    def publish(version: int, weights: ShardedWeights) -> CheckpointRequest:
        nonlocal publisher
        if publisher is None:
            weights.buckets = cut(weights.sizes, LIMIT)
            publisher = BucketPublisher(
                config.method, weights, put, rank == 0, bundles.get(version)
            )
        bundles[version] = publisher.bundle(version)
        checksums[version] = bundles[version].checksums
        return CheckpointRequest(save=version == SAVED and not source)

    def save(state: SlicedState) -> None:
        handed = write_state(state, root, rank, world, engine.gather)
        if rank == 0:
            assert not handed.problem, handed.problem
            # As of a run whose policy lag is 1.
            index, refs = bucket_files({v: bundles[v] for v in (SAVED - 1, SAVED)})
            write_checkpoint(
                root,
                index,
                step=state.step,
                policy_versions=(SAVED - 1, SAVED),
                config={},
                data="",
                plan="",
                learners=world,
                parts=CheckpointParts(
                    InProcessWriter(),
                    large={name: store[ref] for name, ref in refs.items()},
                    slices=handed.slices,
                ),
            )
        torch.distributed.barrier()

    client = RecordingClient(save)
    learner = Learner(
        config,
        engine,
        lambda step: share_of(batches(step % 3), dtype, rank, world),
        client,
        publish,
    )
    weights = learner.weights
    assert isinstance(weights, ShardedWeights)
    start, seconds = 0, 0.0
    if source:
        found, refused = newest_good(root)
        assert found is not None, refused
        bundles |= restored_bundles(found, put)
        names = [name for name in found.manifest.large if name.startswith(PREFIX)]
        began = time.monotonic()
        learner.restore(SliceReader([storage.join(found.path, name) for name in sorted(names)]))
        seconds, start = time.monotonic() - began, SAVED
        write_weights(engine, folder, f"{place_of(case, world)}-start", rank)
    assert learner.run(start, STEPS)
    write_weights(engine, folder, place_of(case, world), rank)
    return {
        "loss": [line["loss"] for line in client.lines],
        "grad_norm": [line["grad_norm"] for line in client.lines],
        "checksums": {str(version): found for version, found in checksums.items()},
        "versions": sorted(bundles),
        "updates": updates_taken(engine.zero),
        "seconds": seconds,
    }


def write_weights(engine: ZeroEngine, folder: Path, name: str, rank: int) -> None:
    """Masters, moments and averages, gathered, as ``NAME.safetensors``."""
    masters = engine.full_weights(STUDENT)
    averages = engine.full_average()
    _, moments = optimizer_state(engine.zero, engine.trained())
    if rank == 0:
        state = {f"{name}.master": tensor for name, tensor in masters.items()}
        state |= {f"{name}.average": tensor.cpu().clone() for name, tensor in averages.items()}
        compute = {
            f"{name}.compute": parameter.detach().clone()
            for name, parameter in engine.trained().items()
            if engine.stage < 3
        }
        save_file(state | moments | compute, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(run_case)
