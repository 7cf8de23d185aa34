"""The pictures of an evaluation and their scores, kept by what made them, so that it resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dopsd.errors import StorageError, message_line
from dopsd.evaluation.folder import SCORES
from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.metrics.base import Column, Metric
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.spec import BASE, EvaluatedModel, MetricChoice
from dopsd.evaluation.worker import GeneratedImage
from dopsd.files import storage
from dopsd.files.seal import sealed, unsealed
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.ray_cluster.job_pool import Job, JobPool

_VALUES = "scores"
_READING = 3
"""Raised with what is read of pictures: scores are then made anew. 3: the oracle reads grain."""


@dataclass(frozen=True)
class ImageEntry:
    """One picture of a set: its prompt, its seed and its file name."""

    prompt: EvalPrompt
    seed: int
    name: str


@dataclass
class ImageSet:
    """The pictures of one model at one number of steps, in one folder of their own."""

    model: EvaluatedModel
    steps: int
    folder: str
    images: list[ImageEntry]
    existing: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.folder.rsplit("/", 1)[-1]

    def path(self, image: ImageEntry) -> str:
        return storage.join(self.folder, image.name)

    def chunks(self, size: int) -> Iterator[list[ImageEntry]]:
        """Always cut alike, so that a resumed evaluation draws in the same batches."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]


@dataclass(frozen=True)
class _Task:
    """A picture, the key of its scores, and the pictures it is held against: paths by identity."""

    image: ImageEntry
    key: str
    targets: dict[str, str]


class Scores:
    """Every metric's numbers of every picture of ``sets``.

    ``references``: each reference picture's digest by its path. A prior prompt without references
    is held against the base's picture of the same noise: how far the model moved where it should
    not.
    """

    def __init__(
        self, out: str, batch: int, sets: list[ImageSet], references: dict[str, str]
    ) -> None:
        self.out, self.batch, self.sets = out, batch, sets
        self._references = references
        self._bases = {
            image_set.steps: image_set for image_set in sets if image_set.model.name == BASE
        }
        self._tasks = {
            image_set.name: [self._task(image_set, image) for image in image_set.images]
            for image_set in sets
        }
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        """Columns by (name of the set, key)."""

    def add(self, pool: JobPool, choice: MetricChoice, tell: Callable[[str], None]) -> None:
        """Measure a metric where it is not measured yet. Raises MissingWeights, and as ``pool``."""
        metric = make_metric(choice.name, choice.model)
        folder = score_folder(self.out, metric)
        known = {
            image_set.name: read_scores(
                storage.join(folder, f"{image_set.name}.json"), metric.columns, tell
            )
            for image_set in self.sets
        }
        total = sum(map(len, self._tasks.values()))
        measured = 0
        chunks: dict[Job, tuple[ImageSet, list[_Task]]] = {}

        def jobs() -> Iterator[Job]:
            # One by one as workers come free: their pictures are read only then.
            for image_set in self.sets:
                left = [
                    task
                    for task in self._tasks[image_set.name]
                    if task.key not in known[image_set.name]
                ]
                for start in range(0, len(left), self.batch):
                    chunk = left[start : start + self.batch]
                    what = f"{metric.name} of {len(chunk)} pictures of {image_set.model.name}"
                    generated = [
                        GeneratedImage(
                            storage.read_bytes(image_set.path(task.image)),
                            task.image.prompt,
                            tuple(task.targets),
                        )
                        for task in chunk
                    ]
                    paths = {key: path for task in chunk for key, path in task.targets.items()}
                    targets = {key: storage.read_bytes(path) for key, path in paths.items()}
                    job = Job(what, "score", (choice, generated, targets))
                    chunks[job] = (image_set, chunk)
                    yield job

        def keep(job: Job, values: list[dict[str, float]]) -> None:
            nonlocal measured
            image_set, chunk = chunks.pop(job)
            known[image_set.name].update(zip((task.key for task in chunk), values, strict=True))
            payload = score_file(known[image_set.name])
            storage.write_bytes(storage.join(folder, f"{image_set.name}.json"), payload)
            measured += len(chunk)
            tell(f"{metric.name}: {measured} pictures measured now, {total} in all")

        tell(metric.name)
        pool.run(jobs(), keep)
        for image_set in self.sets:
            for task in self._tasks[image_set.name]:
                values = self._values.setdefault((image_set.name, task.key), {})
                values.update(known[image_set.name][task.key])

    def all(self) -> list[ImageScores]:
        """What has been measured, in the order of sets and prompts."""
        return [
            ImageScores(
                image_set.model.name,
                image_set.steps,
                task.image.prompt.group,
                task.image.prompt.prior,
                task.image.prompt.text,
                task.image.seed,
                self._values.get((image_set.name, task.key), {}),
            )
            for image_set in self.sets
            for task in self._tasks[image_set.name]
        ]

    def _task(self, image_set: ImageSet, image: ImageEntry) -> _Task:
        prompt = image.prompt
        targets = {self._references[path]: path for path in prompt.references}
        if prompt.prior and not targets and image_set.model.name != BASE:
            base = self._bases[image_set.steps]
            targets = {f"{base.name}/{image.name}": base.path(image)}
        key = fingerprint([image.name, list(targets), prompt.expected, prompt.concept])
        return _Task(image, key, targets)


def score_folder(out: str, metric: Metric, *what: str) -> str:
    """Where the numbers of a metric with these weights lie; ``what``: which, if not its own."""
    identity = model_identity(metric.model) if metric.model else None
    key = fingerprint([metric.name, metric.version, _READING, identity])
    return storage.join(out, SCORES, "-".join([*what, metric.name, key]))


def score_file(values: Mapping[str, Mapping[str, float]]) -> bytes:
    """What :func:`read_scores` reads: numbers by key."""
    return sealed({_VALUES: values})


def read_scores(
    path: str, columns: Mapping[str, Column], tell: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """The numbers of a file by key; none when it is missing. One that is damaged, or holds what the
    metric never says, is set aside: its pictures are measured again."""
    try:
        values: Any = unsealed(json.loads(storage.read_bytes(path)))[_VALUES]
        for numbers in values.values():
            _check(numbers, columns)
    except FileNotFoundError:
        return {}
    except (StorageError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, StorageError) and storage.is_remote(path):
            raise
        aside = storage.set_aside(path)
        tell(f"{path}: {message_line(error)}; measured again, as it was it is {aside}")
        return {}
    known: dict[str, dict[str, float]] = values
    return known


def _check(numbers: dict[str, Any], columns: Mapping[str, Column]) -> None:
    """Raises ValueError for a number that is out of range, or is of no column."""
    for name, value in numbers.items():
        if name not in columns or type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name[:40]}: {str(value)[:40]}, allowed: a number of the metric's")
        if columns[name].rate and not 0 <= value <= 1:
            raise ValueError(f"{name}: {value}, allowed: 0 to 1")
