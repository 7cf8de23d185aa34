"""What each role of a run needs: memory of a worker, and FLOPs for a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dopsd.config import RunConfig
from dopsd.config.recipes import preset_file
from dopsd.data.pictures.buckets import Bucket, buckets
from dopsd.errors import ConfigError
from dopsd.models.lora.factors import Factors
from dopsd.plan.bases import Base
from dopsd.plan.encoder import VAE_ENCODE_BYTES, VAE_ENCODE_FLOPS, VAE_WEIGHTS, picture_tokens
from dopsd.plan.quantized import base_bytes, converted_bytes, encoder_bytes
from dopsd.plan.velocity import Adapter, Shape, activations, filled, flops
from dopsd.readers import Object, read_json
from dopsd.run_folder.prompt_history import drawn_while_training

PROMPT_TOKENS = 128
"""Of a caption with its template where the family cuts padding off, an assumption."""
DETAILED_TOKENS = 512
"""Of a detailed caption, the same."""
ENCODER_ACTIVATIONS = 1 / 8
"""Of a text encoder's weights are its activations, an estimate: sample by sample, no gradients."""
REDUCE_BUCKET = 0.2e9
"""Bytes of DeepSpeed's buffer for sums (configs/deepspeed: 5e7 numbers of 4 bytes)."""
LIVE_PARAMETERS = 1e9
"""That ZeRO-3 gathers at most at a time (configs/deepspeed)."""
FP32 = 4


@dataclass(frozen=True)
class Role:
    """``parts``: bytes of one worker, by what they are."""

    name: str
    parts: dict[str, float]
    flops: float
    """Of one sample."""
    host: float = 0.0
    """Bytes of host memory of one worker, beside its libraries."""

    @property
    def memory(self) -> float:
        return sum(self.parts.values())


class Demand:
    """Of a run's config on a base."""

    def __init__(self, config: RunConfig, base: Base) -> None:
        self.config, self.base, self.model = config, base, base.transformer
        full = config.adapters == "full"
        factors = Factors.of(config.lora)
        self.adapter = Adapter(config.lora.targets, None if full else factors)
        self.size = {"bfloat16": 2, "float32": 4}[config.model.dtype]
        lora = self.model.lora_weights(config.lora.targets, factors)
        self.trained = self.model.weights if full else lora
        """Numbers; of `lora+modules` the LoRA alone, beside which the modules are small."""
        self.frozen = 0 if full else self.model.weights
        self.quantize = config.model.quantize
        self.held = 0.0 if full else base_bytes(self.model, self.quantize, self.size)
        """Bytes of the frozen base."""
        areas = config.data.pixel_area
        self._buckets = [
            bucket
            for area in (areas if isinstance(areas, list) else [areas])
            for bucket in buckets(area, config.data.bucket_multiple)
        ]

    def encoder(self) -> Role:
        """Encodes both contexts of a sample."""
        needs, context, language = self.config.context.needs, self.config.context, self.base.encoder
        pixels = max(bucket.width * bucket.height for bucket in self._buckets)
        student, teacher = self._texts()
        work = self._paths * language.flops(student)
        weights = encoder_bytes(language, self.config.encoder.quantize, self.size)
        parts = {
            "weights": weights,
            "activations": ENCODER_ACTIVATIONS * language.weights * self.size,
        }
        if needs.vlm:
            work += language.flops(teacher, context.image_max_pixels)
        else:
            work += language.flops(teacher)
        if needs.reference_tokens:
            pictures = 1 + needs.references
            work += pictures * VAE_ENCODE_FLOPS * pixels
            parts["autoencoder"] = VAE_WEIGHTS * self.size + VAE_ENCODE_BYTES * pixels
        return Role("encoder", parts, work, weights)

    def rollout(self) -> Role:
        """K forwards of the student."""
        parts = self._inference(adapters=1) | {"activations": self._peak("student", 1)}
        self._add_drawing(parts)
        return Role("rollout", parts, self._rollout_flops(), self._weights_host())

    def teacher(self) -> Role:
        """All K states of a sample in one batch."""
        parts = self._inference(adapters=1)
        parts["activations"] = self._peak("teacher", self.config.method.steps)
        return Role("teacher", parts, self._teacher_flops(), self._weights_host())

    def pool(self) -> Role:
        """Both adapters on one base, both jobs."""
        parts = self._inference(adapters=2)
        parts["activations"] = self._peak("teacher", self.config.method.steps)
        self._add_drawing(parts)
        work = self._rollout_flops() + self._teacher_flops()
        return Role("pool", parts, work, self._weights_host())

    def learner(self, ranks: int, fused: bool, checkpointing: int | None = None) -> Role:
        """One of ``ranks``; ``fused`` it also scores its own states. ``checkpointing``: default as
        the config says."""
        again = self.config.learner.checkpoint_every if checkpointing is None else checkpointing
        stage, optimizer_away, weights_away = _zero(self.config.learner.deepspeed)
        size, trained = self.size, self.trained
        shard = ranks if stage == 3 else 1
        weights = (self.held + trained * size) / shard
        if stage == 3:
            weights += min(LIVE_PARAMETERS, self.frozen + trained) * size * (ranks > 1)
        learner = self.config.learner
        moments = learner.moments * (1 if learner.optimizer == "adamw8bit" else FP32)
        state = trained * (FP32 + moments) / ranks
        # A LoRA's teacher has weights of its own even where they do not move, or are the student's.
        kept = self.config.adapters == "lora" or 0 < self.config.method.teacher_decay < 1
        average = trained * FP32 / ranks if kept else 0.0
        states = 0.0 if optimizer_away else state + average
        peak = max(
            activations(self.model, shape, self.adapter, size, True, again)
            for shape in self._shapes("student", 1, most=True)
        ) + converted_bytes(self.model, self.quantize, size, True, again)
        if fused:  # between two terms the teacher scores one state
            weights += trained * size if self.config.adapters == "lora" else 0
            peak = max(peak, self._peak("teacher", 1))
        parts = {
            "weights": weights if not weights_away else 0.0,
            "gradients": trained * FP32 / (ranks if stage > 1 else 1),
            "optimizer": states,
            "buffers": REDUCE_BUCKET if ranks > 1 and self.config.device != "cpu" else 0.0,
            "activations": peak,
        }
        work = self._learner_flops(again) + (self._teacher_flops() if fused else 0.0)
        # Each reads the base on its host first, and rank 0 copies what is published.
        host = (self.frozen + trained) * size + (state + average if optimizer_away else 0.0)
        return Role("learner", parts, work, host)

    def publication(self) -> float:
        """Bytes of student and teacher as they are published."""
        return 2.0 * self.trained * self.size

    def contexts(self) -> float:
        """Bytes of a sample's contexts in the object store."""
        needs = self.config.context.needs
        _, teacher = self._texts()
        target = self._latents() if needs.reference_tokens and needs.image else 0.0
        seen = teacher * self.model.text_width * self.size + target + self._references()
        return self._paths * self._students_context() + seen

    def trajectory(self) -> float:
        """Bytes of a sample's states, roll-out to teacher."""
        return (self.config.method.steps + 1) * self._latents() * self._paths

    def batch(self) -> float:
        """Bytes of a sample's training terms: states, targets and the student's contexts.

        That of its prompt is taken for half of what both see, which it is at most; that of a class
        prompt comes on top.
        """
        more = (self._paths - 1) * self._students_context()
        half = (self.contexts() - more) / 2
        return 2 * self.config.terms * self._latents() + half + more

    # FLOPs are those of the first bucket (square, or nearly) at typical lengths, memory that of the
    # largest at the limits.

    @property
    def _paths(self) -> int:
        """Rollouts of a sample: its class prompt has one of its own, where that is preserved."""
        return self.config.terms // self.config.method.steps

    def _rollout_flops(self) -> float:
        (shape, *_) = self._shapes("student", 1)
        return self.config.terms * flops(self.model, shape, self.adapter, False) / shape.rows

    def _teacher_flops(self) -> float:
        (shape, *_) = self._shapes("teacher", 1)
        steps = self.config.method.steps
        work = steps * flops(self.model, shape, self.adapter, False) / shape.rows
        # The base scores what is preserved, and sees what the student sees.
        return work + (self._paths - 1) * self._rollout_flops() / self._paths

    def _learner_flops(self, checkpointing: int) -> float:
        (shape, *_) = self._shapes("student", 1)
        once = flops(self.model, shape, self.adapter, True, checkpointing)
        return self.config.terms * once / shape.rows

    def _peak(self, who: str, states: int) -> float:
        shapes = self._shapes(who, states, most=True)
        peak = max(activations(self.model, s, self.adapter, self.size, False) for s in shapes)
        return peak + converted_bytes(self.model, self.quantize, self.size, False, 0)

    def _inference(self, adapters: int) -> dict[str, float]:
        held = self.trained if self.config.adapters == "full" else adapters * self.trained
        return {"weights": self.held + held * self.size}

    def _add_drawing(self, parts: dict[str, float]) -> None:
        """Own prompts between two roll-outs: the autoencoder is there meanwhile, and decodes when
        the transformer's activations are gone. Decoding is taken to need what encoding does."""
        if drawn_while_training(self.config):
            pixels = max(bucket.width * bucket.height for bucket in self._buckets)
            parts["autoencoder"] = VAE_WEIGHTS * self.size
            parts["activations"] = max(parts["activations"], VAE_ENCODE_BYTES * pixels)

    def _weights_host(self) -> float:
        return (self.frozen + self.trained) * self.size

    def _shapes(self, who: str, states: int, most: bool = False) -> Sequence[Shape]:
        """Of each bucket; ``states``: of a sample that are one batch."""
        text = self._texts(most)[who == "teacher"]
        pictures = 0
        if self.config.context.needs.reference_tokens:
            pictures = self.config.context.needs.references + (who == "teacher")
        rows = self.config.learner.micro_batch * states
        return [self._shape(bucket, rows, text, pictures) for bucket in self._buckets]

    def _shape(self, bucket: Bucket, rows: int, text: float, pictures: int) -> Shape:
        side = self.base.latent_pixels * self.model.patch
        tokens = (bucket.width // side) * (bucket.height // side)
        multiple = self.model.multiple
        image = filled(tokens, multiple) + pictures * tokens
        return Shape(rows, image, filled(text, multiple))

    def _texts(self, most: bool = False) -> tuple[float, float]:
        """Tokens of the student's and of the teacher's text; ``most``: the limits."""
        context, needs = self.config.context, self.config.context.needs
        student_limit = float(context.text_tokens)
        teacher_limit = float(context.image_text_tokens if needs.vlm else context.text_tokens)
        if most or self.model.family == "flux2_klein":  # which attends to the padding
            return student_limit, teacher_limit
        typical = PROMPT_TOKENS + (picture_tokens(context.image_max_pixels) if needs.vlm else 0)
        teacher = DETAILED_TOKENS if needs.prompt_pairs else typical
        return min(student_limit, PROMPT_TOKENS), min(teacher_limit, teacher)

    def _students_context(self) -> float:
        student, _ = self._texts()
        return student * self.model.text_width * self.size + self._references()

    def _references(self) -> float:
        """Bytes of the latents of reference pictures in a context, of one picture a sample."""
        needs = self.config.context.needs
        return self._latents() if needs.reference_tokens and needs.references else 0.0

    def _latents(self) -> float:
        """Bytes of the latents of one picture, fp32."""
        bucket, side = self._buckets[0], self.base.latent_pixels
        return FP32 * self.model.channels * (bucket.width // side) * (bucket.height // side)


def _zero(name: str) -> tuple[int, bool, bool]:
    """(stage, optimizer off the GPU, weights off the GPU) of a preset."""
    file = preset_file(name)
    preset: dict[str, Any] = read_json(str(file), Object, ConfigError, f"learner.deepspeed: {file}")
    zero = preset.get("zero_optimization", {})
    return int(zero.get("stage", 0)), "offload_optimizer" in zero, "offload_param" in zero
