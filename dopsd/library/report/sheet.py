"""What a library shows of a concept: a contact sheet drawn by the worker that trained it, on the
base that it holds already, and scores of its pictures that need no weights but the base's."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.config.outputs import PreflightSection
from dopsd.data.context_cache.files import CachedRows, ContextCache
from dopsd.data.planning.concepts import ConceptGroup
from dopsd.data.planning.plan import MicroBatch, RowRef
from dopsd.data.read import RowGroups, read_micro_batch, samples_of
from dopsd.data.run_data import read_spec
from dopsd.data.sample import Sample
from dopsd.data.shapes_source import sprite_of
from dopsd.errors import DataError
from dopsd.evaluation.metrics.base import MetricInput
from dopsd.evaluation.metrics.pixels import Sharpness
from dopsd.evaluation.preflight.distance import choose_metric, load_distance
from dopsd.evaluation.preview.sampler import TITLES
from dopsd.intervals import mean
from dopsd.learner.student import Student
from dopsd.library.report.card import Scores
from dopsd.method.noise import NoisePurpose, batch_noise
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.layers import BASE, STUDENT, activate
from dopsd.records import Context
from dopsd.report.sheet import contact_sheet, strip
from dopsd.shapes.grid import from_image
from dopsd.shapes.sprite_oracle import read_sprite
from dopsd.shapes.sprites import Sprite
from dopsd.shapes.world import PIXELS

THUMBNAIL_BYTES = 6000
"""Most bytes of a thumbnail: a page holds hundreds."""
_SIDES = (96, 64, 48, 32)
"""Sides of a thumbnail's pictures, in pixels: the first that fits is taken."""
_QUALITIES = (75, 50, 25)
_QUALITY = 85
"""WebP's, of the sheet."""

Row = tuple[Image.Image, Image.Image, Image.Image]
"""Target, base and student of a sample."""


@dataclass(frozen=True)
class Sheet:
    """``webp``: rows of target, base and student; ``thumbnail``: the first of them, WebP, too."""

    webp: bytes
    thumbnail: bytes
    scores: Scores


class SheetSampler:
    """Draws concepts of one ``config`` with the base of ``student``, which it leaves as it was.

    The prompts are captions of the concept's own samples, whose contexts were encoded before: a
    library has no text encoder. Noise depends on the run's seed and the sample alone, and no
    generator of torch is asked, so that what is trained next cannot know of it.
    """

    def __init__(self, config: RunConfig, cache: ContextCache, student: Student) -> None:
        self.config, self.student = config, student
        spec = replace(read_spec(config), images=True, reference_pixels=0, caption_dropout=0.0)
        self._rows, self._samples = CachedRows(cache), RowGroups(config.shards, spec, capacity=0)
        self._pipeline: Any = None

    @torch.no_grad()
    def draw(self, groups: Sequence[ConceptGroup], device: torch.device) -> Sheet:
        """The sheet of the concept of ``groups`` under the student's adapter as it is bound."""
        if self._pipeline is None:
            self._pipeline = self.student.family.pipeline_around(
                self.student.transformer, DTYPES[self.config.model.dtype], "cpu"
            )
        self._pipeline.vae.to(device)  # here while it draws: no plan counts it beside training
        samples, rows = [], []
        try:
            for sample, context in self._chosen(groups):
                base, student = (
                    self._picture(adapter, sample, context, device) for adapter in (BASE, STUDENT)
                )
                samples.append(sample)
                rows.append((Image.fromarray(sample.target), base, student))
            if not rows:
                raise DataError("no pictures: its samples are texts alone")
            scores = self.scores(rows, groups[0].concept, device)
        finally:
            activate(self.student.transformer, STUDENT)
            self._pipeline.vae.to("cpu")
        sheet = contact_sheet(TITLES, rows, [sample.prompt for sample in samples])
        return Sheet(_webp(sheet, _QUALITY), thumbnail(rows[0]), scores)

    def _chosen(self, groups: Sequence[ConceptGroup]) -> Iterator[tuple[Sample, Context]]:
        """Some of the concept's samples, of those that have a picture, with what the student sees
        of each."""
        for bucket, ref in islice(self._pictured(groups), self.config.preview.samples):
            batch = MicroBatch(0, 0, 0, bucket, (ref,), (0,), (0,), 1)
            values = read_micro_batch(batch, self._samples, self.config.run.seed)
            (sample,) = samples_of(values)
            encoded = self._rows.sample(ref, sample.sample_id, sample.prompt, sample.teacher_prompt)
            yield sample, encoded.student

    def _pictured(self, groups: Sequence[ConceptGroup]) -> Iterator[tuple[str, RowRef]]:
        """(bucket, row) of the concept's samples that have a picture: those of a sheet, taken
        evenly from all, before the others, which take the place of texts alone."""
        own = [(group.bucket, ref) for group in groups for ref in group.refs]
        wanted = min(self.config.preview.samples, len(own))
        apart = max(1.0, len(own) / self.config.preview.samples)
        evenly = [int(number * apart) for number in range(wanted)]
        for at in (*evenly, *sorted({*range(len(own))} - {*evenly})):
            bucket, ref = own[at]
            if self._samples.row(ref)["image"] is not None:
                yield bucket, ref

    def _picture(
        self, adapter: str, sample: Sample, context: Context, device: torch.device
    ) -> Image.Image:
        """Drawn by the stock sampler."""
        activate(self.student.transformer, adapter)
        family, config = self.student.family, self.config
        height, width = sample.target.shape[:2]
        shape = family.latent_shape(height, width)
        noise = batch_noise(config.run.seed, NoisePurpose.PREVIEW, (sample.sample_id,), shape)
        steps = config.preview.steps or config.method.steps
        seen = context.to(device, DTYPES[config.model.dtype])
        images: Any = family.generate(self._pipeline, seen, noise.to(device), steps, height, width)
        image: Image.Image = images[0]
        return image

    def scores(self, rows: Sequence[Row], concept: str, device: torch.device) -> Scores:
        """By an exact oracle where the pictures are of the shapes world, else in the latents of
        the base's own autoencoder: none of them loads anything."""
        sharp = [[_sharpness(picture) for picture in row[1:]] for row in rows]
        before, after = map(mean, zip(*sharp))
        sharpness = after / before if before else None
        sprite = sprite_of(self.config.data.source or "", concept)
        if sprite and all(picture.size == (PIXELS, PIXELS) for row in rows for picture in row):
            return _sprite_scores(rows, sprite, sharpness)
        metric = choose_metric(PreflightSection(), [np.asarray(target) for target, *_ in rows])
        assert metric in ("oracle", "latent"), metric
        measure = load_distance(metric, None, self.student.family, self._pipeline, str(device))
        distances = [measure(target, [base, student]) for target, base, student in rows]
        base, student = map(mean, zip(*distances))
        return Scores(metric=metric, base=base, student=student, sharpness=sharpness)


def _sprite_scores(rows: Sequence[Row], sprite: Sprite, sharpness: float | None) -> Scores:
    """Of pictures that should show a sprite, wherever and in whatever fill it is."""
    _, *drawings = zip(*rows)
    base, student = (
        read_sprite(torch.stack([from_image(picture) for picture in pictures]), sprite)
        for pictures in drawings
    )
    return Scores(
        metric="sprite",
        base=1 - mean([reading.cells for reading in base]),
        student=1 - mean([reading.cells for reading in student]),
        sharpness=sharpness,
        base_drawn=mean([float(reading.shows) for reading in base]),
        drawn=mean([float(reading.shows) for reading in student]),
    )


def thumbnail(row: Row) -> bytes:
    """The pictures of a row side by side, WebP of at most ``THUMBNAIL_BYTES``."""
    for side in _SIDES:
        small = strip([[_fitted(picture, side) for picture in row]])
        for quality in _QUALITIES:
            payload = _webp(small, quality)
            if len(payload) <= THUMBNAIL_BYTES:
                return payload
    return payload


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """With a longer side of ``side`` pixels; pixel art is enlarged without smoothing."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((size[0], size[1]), way)


def _sharpness(picture: Image.Image) -> float:
    (values,) = Sharpness().measure([MetricInput(picture)])
    return values["sharpness"]


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=quality, method=4)
    return buffer.getvalue()
