"""``dopsd reproduce shapes``: train, evaluate, table and grid; every part resumes where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from dopsd import storage
from dopsd.data.images import encode_png
from dopsd.driver.progress import Progress
from dopsd.errors import ResourceError
from dopsd.evaluation.generate import generate
from dopsd.evaluation.prompts import PRIOR, EvalPrompt, shapes_prompts
from dopsd.evaluation.run import evaluate
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec
from dopsd.experiments.reproduce import table
from dopsd.experiments.reproduce.runs import lora_of, train_all
from dopsd.experiments.reproduce.variants import CAPTIONS, Budget, Trial, prior_file
from dopsd.intervals import Value
from dopsd.models import FAMILIES
from dopsd.ownership import OwnedFolder
from dopsd.ray_cluster.connect import connect
from dopsd.report.sheet import contact_sheet
from dopsd.shapes.concepts import (
    concept_prompts,
    distinct_prior_prompts,
    prior_prompts,
    training_captions,
)
from dopsd.shapes.world import PIXELS

TABLE, LINES = "table.md", "table.json"
_MADE = (TABLE, LINES, "runs/", "shards/", "evaluation/")
"""What the comparison's folder gets beside prompts and grids."""
SEEDS = (0, 1, 2)
"""Pictures of each prompt: short prompts for a concept are all alike."""
PROMPT_SEED = 1000
_MOST_AT_ONCE = 4
"""Unless more are asked for."""
_BYTES_EACH = 2e9
"""Of memory, for each training: its driver, coordinator, controller, reader and learner."""
_GRID_ROWS, _GRID_SEED = 3, 2000
MOST_PROMPTS = 200
"""Prompts of each kind that an evaluation may ask for."""


def reproduce(
    trials: Sequence[Trial],
    budget: Budget,
    folder: str,
    prompts: int,
    begin: Callable[[str], Progress],
    at_once: int | None = None,
    take_over: bool = False,
) -> list[table.Line]:
    """Run the whole comparison and write ``table.md``, ``table.json`` and one grid per concept.

    ``folder`` (local or s3://) keeps everything. ``prompts``: for each concept, and about the
    prior; those that are alike count once. ``begin`` gives the progress of a part by its title, a
    context manager. ``at_once``: trainings beside each other, and workers that draw and score, a
    core each; None is as many as the cluster has cores and memory for, at most 4. ``take_over``:
    the runs' folders, even from living processes. Raises ConfigError for a folder of somebody
    else's, ResourceError when the cluster has fewer cores than ``at_once``, a DopsdError when a
    trial or the evaluation fails.
    """
    spec = _spec(trials, budget, folder, prompts)
    own = OwnedFolder(folder, "comparison", "--folder")
    priors = _priors(trials, budget, folder)
    grids = [f"grid-{concept}.png" for concept in dict.fromkeys(t.concept for t in trials)]
    own.check(*_MADE, *priors, *grids)
    at_once = _at_once(at_once)
    own.claim(*_MADE)
    own.write_all(priors)
    train_all(trials, budget, folder, begin, at_once, take_over)
    with begin("evaluation") as progress:
        results = evaluate(replace(spec, workers=at_once), progress.show)

    def score(model: str, group: str, column: str) -> tuple[Value, int]:
        row = results.row(model, group)
        return row.values[column], row.prompts

    def ratio(model: str, column: str) -> Value:
        return next(
            row.ratio
            for row in results.relatives
            if (row.model, row.against, row.column) == (model, BASE, column)
        )

    lines = table.lines_of(trials, budget, BASE, PRIOR, score, ratio)
    own.write_all({TABLE: table.markdown(lines).encode(), LINES: table.to_json(lines).encode()})
    for concept in dict.fromkeys(trial.concept for trial in trials):
        shown = [t for t in trials if t.concept == concept and t.seed == trials[0].seed]
        loras = [(t.variant.title, lora_of(t, budget, folder)) for t in shown]
        sheet = _grid(concept, [(table.BASE_TITLE, None), *loras])
        own.write(f"grid-{concept}.png", encode_png(sheet))
    return lines


def _at_once(asked: int | None) -> int:
    """Raises ResourceError when the cluster has less than a core for each."""
    cluster = connect()
    cores = int(cluster.get("CPU", 0.0))
    if asked and asked > cores:
        raise ResourceError(f"--at-once: {asked}, the cluster has {cores} CPUs; allowed: 1-{cores}")
    room = int(cluster.get("memory", 0.0) / _BYTES_EACH)
    return asked or max(1, min(_MOST_AT_ONCE, cores, room))


def _spec(trials: Sequence[Trial], budget: Budget, folder: str, count: int) -> EvaluateSpec:
    asked: dict[tuple[str, str], EvalPrompt] = {}
    for concept in dict.fromkeys(trial.concept for trial in trials):
        trained = {
            text
            for trial in trials
            if trial.concept == concept
            for text in training_captions(concept, budget.images, trial.seed, CAPTIONS)
        }
        # Every concept comes with the same prior prompts.
        for prompt in shapes_prompts(concept, count, PROMPT_SEED):
            if prompt.text not in trained:
                asked.setdefault((prompt.group, prompt.text), prompt)
    models = tuple(
        EvaluatedModel(trial.name, (lora_of(trial, budget, folder),), (trial.concept,))
        for trial in trials
    )
    return EvaluateSpec(
        out=storage.join(folder, "evaluation"),
        prompts=tuple(asked.values()),
        models=models,
        seeds=SEEDS,
        device="cpu",
        batch=16,
    )


def _priors(trials: Sequence[Trial], budget: Budget, folder: str) -> dict[str, bytes]:
    """The prompts of the base's own samples, as files of ``folder``: none that is evaluated on,
    however many those are."""
    asked = {prompt.text for prompt in shapes_prompts(trials[0].concept, MOST_PROMPTS, PROMPT_SEED)}
    priors = {}
    for seed in dict.fromkeys(trial.seed for trial in trials):
        texts = [prompt.text for prompt in distinct_prior_prompts(budget.prior, seed, asked)]
        name = prior_file(folder, seed).rpartition("/")[2]
        priors[name] = "\n".join(texts).encode()
    return priors


def _grid(concept: str, loras: Sequence[tuple[str, str | None]]) -> Image.Image:
    """The same prompts, three with ``[V]`` and three that the base knew, and the same noise, drawn
    by each of ``loras``: (title, file or None for the base)."""
    prompts = [p.text for p in concept_prompts(concept, _GRID_ROWS, _GRID_SEED)]
    prompts += [p.text for p in prior_prompts(_GRID_ROWS, _GRID_SEED)]
    family = FAMILIES["z_image"]("shapes")
    columns = [
        list(generate(family, prompts, file, 4, PIXELS, PIXELS, _GRID_SEED, "float32", "cpu"))
        for _, file in loras
    ]
    rows = [[column[row] for column in columns] for row in range(len(prompts))]
    return contact_sheet([title for title, _ in loras], rows, prompts)
