"""Diversity: how far drawings of one prompt from different noises lie apart, beside the base's.

SFT and distillation are known to collapse it, which no score of single pictures sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dopsd.evaluation.metrics import make_distance
from dopsd.evaluation.metrics.base import Column
from dopsd.evaluation.scoring import ImageEntry, ImageSet, read_scores, score_file, score_folder
from dopsd.evaluation.spec import BASE, MetricChoice
from dopsd.files import storage
from dopsd.intervals import Value, bootstrap, mean, nested_bootstrap, ratio_of_means
from dopsd.models.fingerprint import fingerprint
from dopsd.ray_cluster.job_pool import Job, JobPool

DIVERSITY = "diversity"
_COLUMNS = {DIVERSITY: Column("mean distance of two drawings of one prompt")}
_MOST = 16
"""Drawings of a prompt that are held against each other: 120 pairs."""


@dataclass(frozen=True)
class Diversity:
    """A model's mean distance between two drawings of a prompt, on a group of prompts.

    ``value``: in the unit of ``distance``, a metric's name. ``ratio``: divided by the base's on the
    same prompts and noises; None of the base, and where the base's is 0. Intervals over prompts.
    """

    model: str
    steps: int
    group: str
    distance: str
    prompts: int
    drawings: int
    """Of each prompt, at most."""
    value: Value
    ratio: Value | None


def distance_of(metrics: Sequence[MetricChoice], base: str) -> MetricChoice:
    """What drawings are compared by: the first of DINO, CLIP and LPIPS among ``metrics``, else the
    latents of the base's own VAE, which need no other weights."""
    chosen = {choice.name: choice for choice in metrics}
    names = [name for name in ("dino", "clip", "lpips") if name in chosen]
    return chosen[names[0]] if names else MetricChoice("latent", base)


@dataclass(frozen=True)
class _Prompt:
    """A prompt's drawings by one model; ``key``: of what they have in common with other models'."""

    group: str
    key: str
    images: list[ImageEntry]


class Drawings:
    """The drawings of each prompt of ``sets`` from two noises or more, and their distances.

    Kept by what made them, as scores are.
    """

    def __init__(self, out: str, sets: Sequence[ImageSet]) -> None:
        self.out, self.sets = out, sets
        self._prompts = {image_set.name: _several(image_set) for image_set in sets}
        self._values: dict[str, dict[str, dict[str, float]]] = {}
        """By distance, name of the set and key of the prompt."""

    def __bool__(self) -> bool:
        return any(self._prompts.values())

    def add(self, pool: JobPool, choice: MetricChoice, tell: Callable[[str], None]) -> None:
        """Measure a distance where it is not measured yet. Raises MissingWeights and what ``pool``
        raises."""
        metric = make_distance(choice.name, choice.model)
        folder = score_folder(self.out, metric, DIVERSITY)
        paths = {name: storage.join(folder, f"{name}.json") for name in self._prompts}
        known = {name: read_scores(path, _COLUMNS, tell) for name, path in paths.items()}
        measured, total = 0, sum(map(len, self._prompts.values()))
        asked: dict[Job, tuple[str, str]] = {}

        def jobs() -> Iterator[Job]:
            # One by one as workers come free: their pictures are read only then.
            for image_set in self.sets:
                for prompt in self._prompts[image_set.name]:
                    if prompt.key not in known[image_set.name]:
                        drawn = [storage.read_bytes(image_set.path(i)) for i in prompt.images]
                        what = f"{metric.name} between {len(drawn)} drawings of a prompt"
                        job = Job(f"{what} by {image_set.model.name}", "apart", (choice, drawn))
                        asked[job] = (image_set.name, prompt.key)
                        yield job

        def keep(job: Job, distance: float) -> None:
            nonlocal measured
            name, key = asked.pop(job)
            known[name][key] = {DIVERSITY: distance}
            storage.write_bytes(paths[name], score_file(known[name]))
            measured += 1
            tell(f"{DIVERSITY} by {metric.name}: {measured} prompts measured now, {total} in all")

        pool.run(jobs(), keep)
        self._values[metric.name] = {
            name: {key: numbers[DIVERSITY] for key, numbers in values.items()}
            for name, values in known.items()
        }

    def all(self) -> list[Diversity]:
        """What has been measured, in the order of distances, sets and groups of prompts."""
        bases = {s.steps: s.name for s in self.sets if s.model.name == BASE}
        found = []
        for distance, values in self._values.items():
            for image_set in self.sets:
                groups: dict[str, list[_Prompt]] = {}
                for prompt in self._prompts[image_set.name]:
                    groups.setdefault(prompt.group, []).append(prompt)
                own, base = values[image_set.name], values[bases[image_set.steps]]
                for group, prompts in groups.items():
                    apart = [own[prompt.key] for prompt in prompts]
                    ratio = None
                    if image_set.model.name != BASE:
                        ratio = _ratio(apart, [base[prompt.key] for prompt in prompts])
                    most = max(len(prompt.images) for prompt in prompts)
                    value = Value(mean(apart), *bootstrap(apart))
                    found.append(
                        Diversity(
                            image_set.model.name,
                            image_set.steps,
                            group,
                            distance,
                            len(prompts),
                            most,
                            value,
                            ratio,
                        )
                    )
        return found


def _several(image_set: ImageSet) -> list[_Prompt]:
    """The prompts that were drawn more than once."""
    images: dict[tuple[str, str], list[ImageEntry]] = {}
    for image in image_set.images:
        images.setdefault((image.prompt.group, image.prompt.text), []).append(image)
    return [
        _Prompt(group, fingerprint([image.name for image in drawn[:_MOST]]), drawn[:_MOST])
        for (group, _), drawn in images.items()
        if len(drawn) > 1
    ]


def _ratio(ours: Sequence[float], base: Sequence[float]) -> Value | None:
    """Of the means, paired by prompt; None where the base's is 0."""
    if not sum(base):
        return None
    return Value(
        sum(ours) / sum(base),
        *nested_bootstrap([[pair] for pair in zip(ours, base, strict=True)], ratio_of_means),
    )
