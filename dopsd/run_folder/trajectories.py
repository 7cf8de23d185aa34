"""Self-describing dumps of scored micro-batches (`debug.dump_trajectories`).

One safetensors file per micro-batch, ``debug/trajectories/step000000-mb000.safetensors``, and the
adapters of the versions that made them, ``debug/weights/v000000.student.safetensors``. With the
base's weights they are enough to recompute every number outside the project:

- tensors: ``noise`` [B, C, h, w], ``sigmas`` [K + 1], ``states`` [K + 1, B, C, h, w] (states[0] is
  the noise), ``target_velocity`` [K, B, C, h, w], ``weight`` [K], ``mask``
  [B, 1, h, w] where samples have masks, ``student.<name>`` and
  ``teacher.<name>`` (each role's context; ``embeds`` [B, L, D], ``lengths`` [B] for Z-Image);
  of class prompts that are preserved (`data.preservation`) nothing but the texts is written;
- header entry ``dopsd`` (JSON): step, micro-batch index, sample ids, prompts, pixels, seed,
  policy and teacher version, weighting, samples of the whole step, model base and family.

The noise of sample i is ``method.noise.sample_noise(seed, step, noise_ids[i], (C, h, w))`` with
``SampleInfo.noise_ids``; the student's velocity at state k is
(states[k + 1] - states[k]) / (sigmas[k + 1] - sigmas[k]).
"""

from __future__ import annotations

import pyarrow as pa
import torch

from dopsd.config import RunConfig
from dopsd.data.stream.block import load_encoded
from dopsd.files import storage
from dopsd.records import EncodedBatch, SampleInfo, TrainingBatch, pack
from dopsd.run_folder.files import DEBUG


def dumped(config: RunConfig, step: int, index: int) -> bool:
    """Whether this micro-batch is among the first N, counting every step as a full one."""
    return step * config.learner.micro_batches + index < config.debug.dump_trajectories


def weights_dumped(config: RunConfig, version: int) -> bool:
    """Whether a dumped micro-batch can have been made under this version of the weights."""
    return version < config.debug.dump_trajectories


def dump_path(info: SampleInfo) -> str:
    """Path of a micro-batch's dump inside the run folder."""
    return f"{DEBUG}/trajectories/step{info.step:06d}-mb{info.index:03d}.safetensors"


def dump_scored(config: RunConfig, block: pa.Table, scored: bytes, folder: str) -> None:
    """Write the dump of an encoded block and its scored batch under the run folder."""
    batch = load_encoded(block)
    record = trajectory_record(config, batch, TrainingBatch.from_bytes(scored))
    storage.write_bytes(storage.join(folder, dump_path(batch.info)), record)


def trajectory_record(config: RunConfig, batch: EncodedBatch, scored: TrainingBatch) -> bytes:
    """The dump of one scored micro-batch, as safetensors bytes."""
    assert scored.finished is not None and batch.teacher is not None, "dumps are of `dopsd`"
    rows = len(batch.info)
    states = scored.states[:, :rows]
    tensors = {
        "noise": states[0],
        "sigmas": torch.cat([scored.sigmas.cpu(), torch.zeros(1)]),
        "states": torch.cat([states, scored.finished.unsqueeze(0)]),
        "target_velocity": scored.target_velocity[:, :rows],
        "weight": scored.weight,
        **({} if scored.mask is None else {"mask": scored.mask}),
        **{f"student.{name}": t for name, t in batch.student.tensors.items()},
        **{f"teacher.{name}": t for name, t in batch.teacher.tensors.items()},
    }
    info = batch.info
    meta = {
        "record": "ScoredTrajectory",
        **info.__dict__,
        "seed": config.run.seed,
        "policy_version": scored.policy_version,
        "teacher_version": scored.teacher_version,
        "weighting": config.method.weighting,
        "family": config.model.family,
        "base": config.model.base,
    }
    return pack(tensors, meta)
