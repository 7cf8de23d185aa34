"""Scores of drawn pictures, kept by what made them, so that a resumed evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dopsd import storage
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.pictures import ImageSet, Picture
from dopsd.evaluation.results import PictureScores
from dopsd.evaluation.spec import BASE, MetricChoice
from dopsd.evaluation.worker import DrawnPicture
from dopsd.models.fingerprint import fingerprint, model_identity
from dopsd.ray_cluster.job_pool import Job, JobPool

_READING = 2
"""Raised with how pictures are opened: scores are then made anew. 2: as training opens them."""


Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Task:
    """A picture, the key of its scores, and the pictures it is held against: paths by identity."""

    picture: Picture
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
        self._bases = {each.steps: each for each in sets if each.model.name == BASE}
        self._tasks = {each.name: [self._task(each, p) for p in each.pictures] for each in sets}
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        """Columns by (name of the set, key)."""

    def add(self, crew: JobPool, choice: MetricChoice, tell: Tell) -> None:
        """Measure a metric where it is not measured yet. Raises MissingWeights, and as the crew."""
        metric = make_metric(choice.name, choice.model)
        identity = model_identity(metric.model) if metric.model else None
        made = fingerprint([metric.name, metric.version, _READING, identity])
        folder = storage.join(self.out, "scores", f"{metric.name}-{made}")
        known = {each.name: _read(storage.join(folder, f"{each.name}.json")) for each in self.sets}
        total = sum(map(len, self._tasks.values()))
        measured = 0
        chunks: dict[Job, tuple[ImageSet, list[_Task]]] = {}

        def jobs() -> Iterator[Job]:
            # One by one as workers come free: their pictures are read only then.
            for each in self.sets:
                left = [task for task in self._tasks[each.name] if task.key not in known[each.name]]
                for start in range(0, len(left), self.batch):
                    chunk = left[start : start + self.batch]
                    what = f"{metric.name} of {len(chunk)} pictures of {each.model.name}"
                    drawn = [
                        DrawnPicture(
                            storage.read_bytes(each.path(task.picture)),
                            task.picture.prompt,
                            tuple(task.targets),
                        )
                        for task in chunk
                    ]
                    paths = {key: path for task in chunk for key, path in task.targets.items()}
                    targets = {key: storage.read_bytes(path) for key, path in paths.items()}
                    job = Job(what, "score", (choice, drawn, targets))
                    chunks[job] = (each, chunk)
                    yield job

        def keep(job: Job, values: list[dict[str, float]]) -> None:
            nonlocal measured
            each, chunk = chunks.pop(job)
            known[each.name].update(zip((task.key for task in chunk), values, strict=True))
            text = json.dumps(known[each.name], indent=0)
            storage.write_bytes(storage.join(folder, f"{each.name}.json"), text.encode())
            measured += len(chunk)
            tell(f"{metric.name}: {measured} pictures measured now, {total} in all")

        tell(metric.name)
        crew.run(jobs(), keep)
        for each in self.sets:
            for task in self._tasks[each.name]:
                values = self._values.setdefault((each.name, task.key), {})
                values.update(known[each.name][task.key])

    def all(self) -> list[PictureScores]:
        """What has been measured, in the order of sets and prompts."""
        return [
            PictureScores(
                each.model.name,
                each.steps,
                task.picture.prompt.group,
                task.picture.prompt.prior,
                task.picture.prompt.text,
                task.picture.seed,
                self._values.get((each.name, task.key), {}),
            )
            for each in self.sets
            for task in self._tasks[each.name]
        ]

    def _task(self, each: ImageSet, picture: Picture) -> _Task:
        prompt = picture.prompt
        targets = {self._references[path]: path for path in prompt.references}
        if prompt.prior and not targets and each.model.name != BASE:
            base = self._bases[each.steps]
            targets = {f"{base.name}/{picture.name}": base.path(picture)}
        key = fingerprint([picture.name, list(targets), prompt.expected, prompt.concept])
        return _Task(picture, key, targets)


def _read(path: str) -> dict[str, dict[str, float]]:
    if not storage.exists(path):
        return {}
    values: dict[str, dict[str, float]] = json.loads(storage.read_bytes(path))
    return values
