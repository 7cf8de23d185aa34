"""The few records that pass between rooms. Imports torch and safetensors alone.

Every record travels as one safetensors byte string (``pack`` / ``unpack``): tensors keep their
dtype (bfloat16 included), the rest stands in the header as JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import load as _safetensors_load
from safetensors.torch import save as _safetensors_save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

META_KEY = "dopsd"
"""Under which a payload's ``meta`` stands in the header of safetensors."""


def pack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """Serialise tensors and a JSON-able ``meta`` as one safetensors byte string."""
    flat: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        flat[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return _safetensors_save(flat, metadata={META_KEY: json.dumps(meta, ensure_ascii=False)})


def unpack(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`pack`, of anything that holds its bytes. Raises ValueError when the header
    is not dopsd's."""
    payload = bytes(payload)
    header_size = int.from_bytes(payload[:8], "little")
    try:
        header = json.loads(payload[8 : 8 + header_size])
        meta = json.loads(header["__metadata__"][META_KEY])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            "not a dopsd record: its safetensors header has no 'dopsd' entry"
        ) from error
    return _safetensors_load(payload), meta


@dataclass
class Context:
    """What a role sees of a micro-batch, as the family's transformer consumes it.

    ``tensors``: every entry has the batch as first dimension. Z-Image uses ``embeds`` [B, L, D]
    (features, zero-padded to the longest) and ``lengths`` [B] int64 (valid tokens of each row).
    FLUX.2-klein uses ``embeds`` alone (every row as long as the limit) and, for reference images,
    ``reference``, ``reference_ids`` and ``reference_lengths`` (``Family.reference_tokens``). Krea 2
    and Qwen-Image use ``embeds`` and ``lengths``; Krea's D is that of all its layers side by side.
    """

    tensors: dict[str, Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Context:
        """Move features to ``device`` and ``dtype``. Integers are sizes that the host reads, so
        they stay on the CPU: reading them from a GPU would stall it at every forward."""
        return self._each(lambda t: t.to(device, dtype) if t.is_floating_point() else t)

    def repeat(self, times: int) -> Context:
        """The batch ``times`` times over, in order (b0..bn, b0..bn, ...)."""
        return self._each(lambda tensor: tensor.repeat(times, *([1] * (tensor.dim() - 1))))

    def rows(self, rows: list[int]) -> Context:
        """Those of the batch, in the order given."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Context:
        return Context({name: change(tensor) for name, tensor in self.tensors.items()})

    @classmethod
    def joined(cls, rows: Sequence[Context]) -> Context:
        """Contexts of one sample each, with the same entries, as that of a micro-batch: what is
        shorter along the second dimension is zero-padded to the longest."""
        return cls(
            {
                name: torch.cat([row.tensors[name] for row in rows])
                if tensor.dim() == 1
                else pad_sequence([row.tensors[name][0] for row in rows], batch_first=True)
                for name, tensor in rows[0].tensors.items()
            }
        )


@dataclass(frozen=True)
class SampleInfo:
    """The identity of each sample in a micro-batch; B entries each."""

    step: int
    """Optimizer step (0-based) that this micro-batch belongs to."""
    index: int
    """Index of the micro-batch within its step."""
    sample_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    """The caption drawn for each sample, as the user wrote it (never templated)."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    step_samples: int
    """Number of real samples in the whole optimizer step: the loss is normalised by it."""
    repeats: tuple[int, ...] = ()
    """How often each sample came before within its step; empty where none did."""
    class_prompts: tuple[str, ...] = ()
    """Each sample's prompt with the class word for the token, where that is preserved; the prompt
    itself where it has none. Empty in a run that preserves nothing."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SampleInfo:
        """From plain values, among others; lists become tuples."""
        own: dict[str, Any] = {entry.name: values[entry.name] for entry in fields(cls)}
        own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
        return cls(**own)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def noise_ids(self) -> tuple[str, ...]:
        """What each sample's noise is drawn by."""
        return noise_ids(self.sample_ids, self.repeats or (0,) * len(self))

    @property
    def preserved(self) -> Tensor:
        """[B] float32: 1 for each sample whose class prompt is another than its prompt."""
        pairs = zip(self.prompts, self.class_prompts, strict=True)
        return torch.tensor([float(prompt != kept) for prompt, kept in pairs])


def noise_ids(sample_ids: Sequence[str], repeats: Sequence[int]) -> tuple[str, ...]:
    """What each sample's noise is drawn by: its id, and one of its own where it comes again."""
    return tuple(f"{n}/{k}" if k else n for n, k in zip(sample_ids, repeats, strict=True))


class _Record:
    """Serialisation shared by the records: dataclass fields by kind."""

    def to_bytes(self) -> bytes:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                tensors[entry.name] = value
            elif isinstance(value, Context):
                for name, tensor in value.tensors.items():
                    tensors[f"{entry.name}.{name}"] = tensor
            elif isinstance(value, SampleInfo):
                meta[entry.name] = dict(value.__dict__)
            else:
                meta[entry.name] = value
        return pack(tensors, {"record": type(self).__name__, **meta})

    @classmethod
    def from_bytes(cls, payload: bytes) -> Any:
        tensors, meta = unpack(payload)
        if meta.get("record") != cls.__name__:
            raise ValueError(f"expected a {cls.__name__} record, found {meta.get('record')!r}")
        values: dict[str, Any] = {}
        for entry in fields(cls):  # type: ignore[arg-type]
            prefix = f"{entry.name}."
            nested = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            if entry.name in tensors:
                values[entry.name] = tensors[entry.name]
            elif nested:
                values[entry.name] = Context(nested)
            elif entry.name == "info":
                values["info"] = SampleInfo.of(meta["info"])
            elif entry.name in meta:
                values[entry.name] = meta[entry.name]
        return cls(**values)


@dataclass
class EncodedSample(_Record):
    """What frozen models made of one sample under one prompt: every tensor has one row, and none
    depends on another sample. Micro-batches are put together of these."""

    student: Context
    teacher: Context | None
    """None where the objective has no teacher."""
    target: Tensor | None
    """[1, C, h, w] float32, or None: see EncodedBatch."""
    class_student: Context | None = None
    """The student's context of the class prompt, or None: see EncodedBatch."""


def join_samples(
    samples: Sequence[EncodedSample],
) -> tuple[Context, Context | None, Tensor | None]:
    """(student's context, teacher's context, latents) of the micro-batch of ``samples``."""
    students = Context.joined([sample.student for sample in samples])
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    targets = [sample.target for sample in samples if sample.target is not None]
    return (
        students,
        Context.joined(teachers) if teachers else None,
        torch.cat(targets) if targets else None,
    )


@dataclass
class EncodedBatch(_Record):
    """One micro-batch as the stream delivers it: identities and what frozen models made of it."""

    info: SampleInfo
    student: Context
    teacher: Context | None
    """None where the objective has no teacher."""
    target: Tensor | None = None
    """[B, C, h, w] float32: the images' latents, where the objective trains on them."""
    mask: Tensor | None = None
    """[B, H, W] uint8, in pixels: what of each target counts in the loss; None: all of it."""
    class_student: Context | None = None
    """The student's context of the class prompts; None in a run that preserves nothing."""
    encode_stats: dict[str, Any] = field(default_factory=dict)
    """``seconds`` that encoding took, ``ended`` (since the epoch), ``worker`` (id of the encoder's
    actor) and ``peak_memory_mb`` of its process."""


@dataclass
class Trajectory(_Record):
    """A student's own few-step rollout of one micro-batch.

    ``sigmas`` [K + 1] float32 (the last is 0); ``states`` [K + 1, B, C, h, w] float32: the noise
    first, the student's finished latents last. ``policy_version``: number of optimizer steps that
    the student's weights had seen. Where class prompts are preserved, ``states`` has 2B rows: those
    of the rollouts under them, from the same noises, follow.
    """

    info: SampleInfo
    policy_version: int
    seed: int
    sigmas: Tensor
    states: Tensor
    student: Context


@dataclass
class TrainingBatch(_Record):
    """The one contract between every objective and the learner.

    ``states`` [K, B, C, h, w], ``sigmas`` [K], or [K, B] where every sample has levels of its own;
    ``student`` the context under which the student is
    run, ``target_velocity`` [K, B, C, h, w], ``weight`` [K]: loss weight w_k of each state.
    With ``class_student``, the context of the class prompts, ``states`` and ``target_velocity``
    have 2B rows: the rollouts under them, and the base's velocities there, follow.
    """

    info: SampleInfo
    policy_version: int
    teacher_version: int
    states: Tensor
    sigmas: Tensor
    student: Context
    target_velocity: Tensor
    weight: Tensor
    finished: Tensor | None = None
    """[B, C, h, w] float32: where the rollout ended (sigma 0), when there was one."""
    mask: Tensor | None = None
    """[B, 1, h, w] float32 of mean 1: how much each place counts (``objective.loss_mask``)."""
    class_student: Context | None = None
    class_weight: Tensor | None = None
    """[B] float32: how much each class prompt counts, beside 1 for the prompt; 0 where it has no
    token to replace."""
    encode_stats: dict[str, Any] = field(default_factory=dict)
    """As in EncodedBatch, passed on for the run's metrics."""
