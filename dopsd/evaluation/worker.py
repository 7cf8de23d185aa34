"""What an evaluation's actor does: first draw, then score, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from dopsd.data.pictures.images import decode_image
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.metrics.base import ImageDistance, Metric, MetricInput
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.sampler import EvaluationSampler
from dopsd.evaluation.spec import EvaluatedModel, EvaluateSpec, MetricChoice
from dopsd.intervals import mean
from dopsd.method.noise import NoisePurpose
from dopsd.ray_cluster.process import use_device


@dataclass(frozen=True)
class GeneratedImage:
    """PNG bytes of a picture, and the digests of the pictures it is held against."""

    png: bytes
    prompt: EvalPrompt
    targets: tuple[str, ...]


class EvaluationWorker:
    """A plain class; ``evaluation.run`` wraps it as an actor."""

    def __init__(
        self, spec: EvaluateSpec, device: str, purpose: NoisePurpose = NoisePurpose.EVALUATION
    ) -> None:
        use_device(device)
        self.spec, self.device, self.purpose = spec, device, purpose
        self._sampler: EvaluationSampler | None = None
        self._metric: tuple[MetricChoice, Metric] | None = None

    def generate(
        self,
        model: EvaluatedModel,
        prompts: list[str],
        seeds: list[int],
        steps: int,
        *payloads: Any,
    ) -> list[bytes]:
        """PNG of each prompt; ``payloads``: the bytes of the model's files."""
        if self._sampler is None:
            self._sampler = EvaluationSampler(self.spec, self.device, self.purpose)
        return self._sampler.generate(model, payloads, prompts, seeds, steps)

    def score(
        self, choice: MetricChoice, images: Sequence[GeneratedImage], targets: Mapping[str, bytes]
    ) -> list[dict[str, float]]:
        """A metric's columns of every picture; ``targets``: image bytes by digest."""
        opened = {digest: decode_image(payload) for digest, payload in targets.items()}
        return self._loaded(choice).measure(
            [
                MetricInput(
                    decode_image(image.png),
                    image.prompt.text,
                    tuple(opened[digest] for digest in image.targets),
                    image.prompt.expected,
                    image.prompt.concept,
                )
                for image in images
            ]
        )

    def apart(self, choice: MetricChoice, drawn: Sequence[bytes]) -> float:
        """The mean distance of every two of these pictures, by a metric that compares them."""
        metric = self._loaded(choice)
        assert isinstance(metric, ImageDistance)
        pairs = list(combinations(map(decode_image, drawn), 2))
        return mean(metric.distance([a for a, _ in pairs], [b for _, b in pairs]))

    def _loaded(self, choice: MetricChoice) -> Metric:
        self._sampler = None
        if self._metric is None or self._metric[0] != choice:
            self._metric = None  # before the next is loaded
            metric = make_metric(choice.name, choice.model, self.device)
            metric.load()
            self._metric = (choice, metric)
        return self._metric[1]
