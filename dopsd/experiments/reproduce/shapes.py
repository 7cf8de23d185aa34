"""``dopsd reproduce shapes``: train, evaluate, table and grid; every part resumes where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from dopsd.data.pictures.images import encode_png
from dopsd.driver.monitoring.progress import Progress
from dopsd.errors import ResourceError
from dopsd.evaluation.generate import generate
from dopsd.evaluation.prompts import PRIOR, EvalPrompt, shapes_prompts
from dopsd.evaluation.results import Results
from dopsd.evaluation.run import evaluate
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec, resolve
from dopsd.experiments.reproduce import table
from dopsd.experiments.reproduce.diversity import DIVERSITY, diversity, relative
from dopsd.experiments.reproduce.diversity import prompts as open_prompts
from dopsd.experiments.reproduce.rates import Choices, Tried, candidates, chosen, tried
from dopsd.experiments.reproduce.runs import adapters_of, check_runs, pending, seconds_of, train_all
from dopsd.experiments.reproduce.variants import (
    CAPTIONS,
    TUNING_SEED,
    Budget,
    Trial,
    Variant,
    lora_of,
    prior_file,
)
from dopsd.experiments.reproduce.variants import trials as trials_of
from dopsd.files import storage
from dopsd.intervals import Value
from dopsd.models import FAMILIES
from dopsd.ownership.ownership import OwnedFolder
from dopsd.ray_cluster.connect import connect
from dopsd.report.sheet import contact_sheet
from dopsd.shapes.concepts import (
    CONCEPTS,
    concept_prompts,
    distinct_prior_prompts,
    prior_prompts,
    training_captions,
)
from dopsd.shapes.world import PIXELS

TABLE, LINES = "table.md", "table.json"
_MADE = (TABLE, LINES, DIVERSITY, "runs/", "shards/", "tuning/", "evaluation/")
"""What the comparison's folder gets beside prompts and grids."""
SEEDS = (0, 1, 2)
"""Pictures of each prompt: short prompts for a concept are all alike."""
PROMPT_SEED = 1000
_MOST_AT_ONCE = 4
"""Unless more are asked for."""
_BYTES_EACH = 2e9
"""Of memory, for each training: its driver, coordinator, controller, reader and learner."""
_GRID_ROWS, _GRID_SEED = 3, 2000
_OF_NOTHING = Value(1.0, 1.0, 1.0)
"""A ratio to a base that has nothing of it."""
MOST_PROMPTS = 200
"""Prompts of each kind that an evaluation may ask for."""


@dataclass(frozen=True)
class Comparison:
    """What is compared: rows by concepts by seeds, each row at the best of ``rates``."""

    variants: Sequence[Variant]
    concepts: Sequence[str]
    seeds: range
    rates: Sequence[float]
    """For a row of rate 1; a single one is taken as it is."""
    budget: Budget
    prompts: int
    """For each concept, and about the prior; those that are alike count once."""


def reproduce(
    asked: Comparison,
    folder: str,
    begin: Callable[[str], Progress],
    at_once: int | None = None,
    take_over: bool = False,
) -> list[table.Line]:
    """Run the whole comparison and write ``table.md``, ``table.json`` and one grid per concept.

    ``folder`` (local or s3://) keeps everything. ``begin`` gives the progress of a part by its
    title, a context manager. ``at_once``: trainings beside each other, and workers that draw and
    score, a core each; None is as many as the cluster has cores and memory for, at most 4.
    ``take_over``: the runs' folders, even from living processes. Raises ConfigError for a folder of
    somebody else's, ResourceError when the cluster has fewer cores than ``at_once``, a DopsdError
    when a trial or the evaluation fails.
    """
    own = OwnedFolder(folder, "comparison", "--folder")
    tuned = len(asked.rates) > 1
    priors = _priors([*asked.seeds, *([TUNING_SEED] if tuned else [])], asked.budget, folder)
    grids = [f"grid-{concept}.png" for concept in asked.concepts]
    own.check(*_MADE, *priors, *grids)
    _check_runs(asked, folder)
    at_once = _at_once(at_once)
    own.claim(*_MADE)
    own.write_all(priors)

    def train(trials: Sequence[Trial]) -> None:
        train_all(trials, asked.budget, folder, begin, at_once, take_over)

    def judge(trials: Sequence[Trial], spec: EvaluateSpec, title: str) -> Results:
        with begin(title) as progress:
            return evaluate(
                _with_loras(replace(spec, workers=at_once), trials, folder), progress.show
            )

    choices: Choices = {}
    if tuned:
        tries = candidates(asked.variants, asked.concepts, asked.rates, TUNING_SEED)
        train(tries)
        spec = _spec(asked, storage.join(folder, "tuning"), PROMPT_SEED + 1, (TUNING_SEED,))
        results = judge(tries, spec, "evaluation, for the rates")
        choices = tried(tries, partial(_tried, results))

    def rate(variant: Variant, concept: str) -> float:
        if not tuned:
            return asked.rates[0] * variant.rate
        return chosen(choices[variant.name, concept])

    trials = trials_of(asked.variants, asked.concepts, asked.seeds, rate)
    train(trials)
    spec = _spec(asked, storage.join(folder, "evaluation"), PROMPT_SEED, asked.seeds)
    found = _measured(judge(trials, spec, "evaluation"))
    with begin("diversity") as progress:
        spec = resolve(_with_loras(replace(spec, workers=at_once), trials, folder))
        apart = diversity(spec, own, partial(progress.show, "diversity"))
    seconds = {trial.name: seconds_of(trial, folder) for trial in trials}
    lines = table.lines_of(
        trials,
        asked.budget,
        BASE,
        PRIOR,
        table.Measured(
            *found, lambda model: relative(apart[model], apart[BASE]), seconds.__getitem__
        ),
        choices,
    )
    own.write_all({TABLE: table.markdown(lines).encode(), LINES: table.to_json(lines).encode()})
    for concept in asked.concepts:
        shown = [t for t in trials if t.concept == concept and t.seed == asked.seeds[0]]
        loras = [(t.variant.title, lora_of(t, folder)) for t in shown]
        sheet = _grid(concept, [(table.BASE_TITLE, None), *loras])
        own.write(f"grid-{concept}.png", encode_png(sheet))
    return lines


def _check_runs(asked: Comparison, folder: str) -> None:
    """Look at every run that may be there, before anything starts: which rates the rows of the
    table get may not be known yet. Raises as ``check_runs``, and as ``pending`` for those that are
    certain."""

    def at(rate: float) -> list[Trial]:
        variants, concepts = asked.variants, asked.concepts
        return trials_of(variants, concepts, asked.seeds, lambda row, _: rate * row.rate)

    possible = [trial for rate in asked.rates for trial in at(rate)]
    certain = possible
    if len(asked.rates) > 1:
        certain = candidates(asked.variants, asked.concepts, asked.rates, TUNING_SEED)
    check_runs([*possible, *certain, *adapters_of([*possible, *certain])], folder)
    pending([*certain, *adapters_of(certain)], asked.budget, folder)


def _measured(results: Results) -> tuple[table.Score, table.Ratio]:
    def score(model: str, group: str, column: str) -> tuple[Value, int]:
        row = results.row(model, group)
        return row.values[column], row.prompts

    def ratio(model: str, column: str) -> Value:
        key = (model, BASE, column)
        return next(
            (r.ratio for r in results.relatives if (r.model, r.against, r.column) == key),
            _OF_NOTHING,
        )

    return score, ratio


def _tried(results: Results, trial: Trial) -> Tried:
    score, ratio = _measured(results)
    concept, _ = score(trial.name, trial.concept, "concept")
    kept, contrast = (ratio(trial.name, column).value for column in ("ok", "contrast"))
    return Tried(trial.lr, concept.value, kept, contrast)


def _at_once(asked: int | None) -> int:
    """Raises ResourceError when the cluster has less than a core for each."""
    cluster = connect()
    cores = int(cluster.get("CPU", 0.0))
    if asked and asked > cores:
        raise ResourceError(f"--at-once: {asked}, the cluster has {cores} CPUs; allowed: 1-{cores}")
    room = int(cluster.get("memory", 0.0) / _BYTES_EACH)
    return asked or max(1, min(_MOST_AT_ONCE, cores, room))


def _spec(
    asked: Comparison, out: str, prompt_seed: int, training_seeds: Iterable[int]
) -> EvaluateSpec:
    """The prompts, without those that were trained on; the base alone as yet."""
    seeds = list(training_seeds)
    found: dict[tuple[str, str], EvalPrompt] = {}
    for concept in asked.concepts:
        trained = {
            text
            for seed in seeds
            for text in training_captions(concept, asked.budget.images, seed, CAPTIONS)
        }
        # Every concept comes with the same prior prompts.
        for prompt in shapes_prompts(concept, asked.prompts, prompt_seed):
            if prompt.text not in trained:
                found.setdefault((prompt.group, prompt.text), prompt)
    return EvaluateSpec(out=out, prompts=tuple(found.values()), seeds=SEEDS, device="cpu", batch=16)


def _with_loras(spec: EvaluateSpec, trials: Sequence[Trial], folder: str) -> EvaluateSpec:
    """With a model for each trial, drawn without what it was trained on top of."""
    models = [EvaluatedModel(t.name, (lora_of(t, folder),), (t.concept,)) for t in trials]
    return replace(spec, models=tuple(models))


def _priors(seeds: Iterable[int], budget: Budget, folder: str) -> dict[str, bytes]:
    """The prompts of the base's own samples, as files of ``folder``: none that is evaluated on,
    however many those are."""
    asked = {
        prompt.text
        for seed in (PROMPT_SEED, PROMPT_SEED + 1)
        for prompt in shapes_prompts(next(iter(CONCEPTS)), MOST_PROMPTS, seed)
    }
    asked.update(open_prompts())
    files = {}
    for seed in seeds:
        texts = [prompt.text for prompt in distinct_prior_prompts(budget.prior, seed, asked)]
        files[prior_file(folder, seed).rpartition("/")[2]] = "\n".join(texts).encode()
    return files


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
