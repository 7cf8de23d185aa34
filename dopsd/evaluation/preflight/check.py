"""Can the teacher draw the concept? Base as student and base as teacher, from the same noise.

A teacher that cannot draw a concept cannot teach it: the paper's own failure case. Before training
student and teacher are the same weights, so what separates them here is the context alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, ContextView
from dopsd.data.pictures.images import encode_png
from dopsd.data.sample import Sample
from dopsd.evaluation.preflight.distance import load_distance
from dopsd.evaluation.preflight.framing import Framing, FramingVerdict, framing, judge_framing
from dopsd.evaluation.preflight.verdict import TeacherVerdict, judge
from dopsd.method.noise import NoisePurpose, batch_noise
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES, Family
from dopsd.models.lora.loading import load_adapter
from dopsd.models.lora.merge import drawn_merged, merge
from dopsd.models.lora.warm_start import for_pipeline, initial_lora
from dopsd.models.trained import TrainableParameters
from dopsd.records import Context
from dopsd.report.sheet import contact_sheet


@dataclass
class SampleCheck:
    """One sample: its contexts as the encoder reads them, and for each noise a distance and how the
    teacher's picture lies on the target."""

    sample_id: str
    prompt: str
    student_context: ContextView
    teacher_context: ContextView
    student: list[float]
    teacher: list[float]
    framing: list[Framing | None]


@dataclass
class Preflight:
    """What the preflight found, and the contact sheet (PNG) to see it by."""

    verdict: TeacherVerdict
    framing: FramingVerdict
    samples: list[SampleCheck]
    sheet: bytes

    def record(self) -> dict[str, Any]:
        """Everything but the picture, ready for JSON."""
        samples = []
        for sample in self.samples:
            entry = asdict(sample)
            for role in ("student_context", "teacher_context"):
                entry[role]["truncated"] = getattr(sample, role).truncated
            samples.append(entry)
        verdict = {"sentence": self.verdict.sentence(), **asdict(self.verdict)}
        framed = {"sentence": self.framing.sentence(), **asdict(self.framing)}
        return {"verdict": verdict, "framing": framed, "samples": samples}


def check_teacher(
    config: RunConfig,
    samples: list[Sample],
    metric: str,
    encoder_factory: Callable[[], ContextEncoder],
    device: str,
) -> Preflight:
    """Draw ``samples`` by the base with either context, and judge by the distance to the target.

    ``metric``: what ``distance.choose_metric`` chose. The stock pipeline draws, at most
    ``learner.micro_batch`` pictures at once.
    """
    encoder = encoder_factory()
    views = [encoder.views([sample])[0] for sample in samples]
    contexts = [encoder.encode([sample]) for sample in samples]
    del encoder  # its memory is the pipeline's now
    family = FAMILIES[config.model.family](config.model.base, config.model.revision)
    model = config.model
    pipeline = family.load_pipeline(
        DTYPES[model.dtype],
        device,
        text_encoder=False,
        attention=model.attention,
        quantize=model.quantize,
    )
    merge(pipeline.transformer, family, drawn_merged(config))
    begins = "base"
    if start := initial_lora(TrainableParameters(config, family), pipeline.transformer):
        begins = "warm start"
        load_adapter(pipeline, for_pipeline(config, start), begins.replace(" ", "_"))
    distance = load_distance(metric, config.preflight.model, family, pipeline, device)
    checks, rows = [], []
    for sample, view, context in zip(samples, views, contexts):
        target = Image.fromarray(sample.target)
        generated = [_generate(config, family, pipeline, sample, role, device) for role in context]
        student, teacher = (distance(target, images) for images in generated)
        framed = [framing(target, image) for image in generated[-1]]
        checks.append(SampleCheck(sample.sample_id, sample.prompt, *view, student, teacher, framed))
        rows.append([target, *(images[0] for images in generated)])
    verdict = judge(
        np.array([check.student for check in checks]),
        np.array([check.teacher for check in checks]),
        metric,
        config.preflight.margin,
    )
    captions = [
        f"{check.prompt} | {metric} distance: student {check.student[0]:.2f}, teacher "
        f"{check.teacher[0]:.2f}"
        for check in checks
    ]
    titles = (
        "target",
        f"student ({begins})",
        f"teacher ({begins}, sees {config.context.needs.teacher_sees})",
    )
    return Preflight(
        verdict,
        judge_framing([check.framing for check in checks]),
        checks,
        encode_png(contact_sheet(titles, rows, captions)),
    )


@torch.no_grad()
def _generate(
    config: RunConfig,
    family: Family,
    pipeline: Any,
    sample: Sample,
    context: Context,
    device: str,
) -> list[Image.Image]:
    """One picture of the sample for each noise, in as many steps as a training rollout has."""
    height, width = sample.target.shape[:2]
    shape = family.latent_shape(height, width)
    count = config.preflight.num_noises
    seed, names = config.run.seed, (sample.sample_id,)
    steps = (NoisePurpose.PREFLIGHT - n for n in range(count))
    noise = torch.cat([batch_noise(seed, step, names, shape) for step in steps])
    context = context.to(device, DTYPES[config.model.dtype])
    images: list[Image.Image] = []
    for part in noise.to(device).split(config.learner.micro_batch):
        contexts = context.repeat(len(part))
        images += family.generate(pipeline, contexts, part, config.method.steps, height, width)
    return images
