"""``dopsd reproduce paper``: train, write prompts, draw, judge, page; every part resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dopsd.checkpoint.folder import complete_steps
from dopsd.config import RunConfig
from dopsd.driver.monitoring.progress import Progress, Report
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.driver.train import train
from dopsd.errors import ConfigError
from dopsd.evaluation.dataset_prompts import dataset_prompts
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.run import evaluate
from dopsd.evaluation.spec import EvaluatedModel, EvaluateSpec, MetricChoice, resolve_models
from dopsd.experiments.paper import page
from dopsd.experiments.paper.cost import Cost, drawing_cost, training_cost
from dopsd.experiments.paper.rows import PaperRow, config_of, rows_of
from dopsd.experiments.settings import refuse_other_settings
from dopsd.files import storage
from dopsd.models.pretrained import MissingWeights
from dopsd.ownership.ownership import OwnedFolder
from dopsd.run_folder.files import LORA_FILE, RunFolder
from dopsd.run_folder.outputs import check_stranger

PAGE, RESULTS = "paper.md", "paper.json"
_MADE = (PAGE, RESULTS, "runs/", "shards/", "evaluation/")
METRICS = {
    "clip": "apple/DFN5B-CLIP-ViT-H-14",
    "dino": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "lpips": "vgg",
    "judge": "Qwen/Qwen3-VL-4B-Instruct",
}
"""As the paper names them; of LPIPS the network is the metric's own, VGG. The paper's judge is not
named in what this is built from."""
STEPS = 8
"""Forwards of a picture, as the authors sample Z-Image-Turbo."""
PROMPTS_EACH = 5
"""Of a sample: one rewrite and four scenes."""


@dataclass(frozen=True)
class PaperRun:
    """What is asked for. ``adapter``: ``FILE`` or ``FILE@scale``, of ``model.merge``. ``metrics``:
    a model for each of METRICS that another one shall replace. ``prompt_vlm``: writes the held-out
    prompts; None takes templates. ``overrides``: of the configs of all rows."""

    concept: str
    folder: str
    adapter: str | None = None
    metrics: tuple[MetricChoice, ...] = ()
    prompt_vlm: str | None = METRICS["judge"]
    seeds: int = 1
    steps: int = STEPS
    overrides: tuple[str, ...] = ()

    def configs(self) -> dict[PaperRow, RunConfig]:
        """Of each row. Raises ConfigError."""
        return {
            row: config_of(row, self.concept, self.folder, self.adapter, self.overrides)
            for row in rows_of(self.adapter)
        }

    def chosen_metrics(self) -> tuple[MetricChoice, ...]:
        """Raises ConfigError for one that is not the paper's."""
        models: dict[str, str | None] = {**METRICS, "lpips": None}
        for choice in self.metrics:
            if choice.name not in models:
                raise ConfigError(f"--metric: {choice.name!r}, allowed: {', '.join(METRICS)}")
            models[choice.name] = choice.model
        return tuple(MetricChoice(name, model) for name, model in models.items())


def costs(asked: PaperRun, samples: int | None = None) -> dict[str, Cost]:
    """Of each training, and of the pictures of ``samples`` where they are known."""
    configs = asked.configs()
    found = {f"training, {row.title}": training_cost(config) for row, config in configs.items()}
    if samples is not None:
        pictures = samples * PROMPTS_EACH * asked.seeds * (1 + len(configs))
        config = next(iter(configs.values()))
        found["pictures"] = drawing_cost(config, pictures, asked.steps)
    return found


def reproduce_paper(
    asked: PaperRun, begin: Callable[[str], Progress], take_over: bool = False
) -> str:
    """Run the whole comparison and write ``paper.md`` and ``paper.json``; returns the page.

    Called again it goes on where it was: a finished row is not trained again, one that was cut
    short resumes from its newest checkpoint. Raises ConfigError for a folder of somebody else's or
    a row that was trained by other settings, or whatever training and evaluation raise.
    """
    own = OwnedFolder(asked.folder, "paper", "--folder")
    configs = {row: with_absolute_paths(config) for row, config in asked.configs().items()}
    out = storage.join(asked.folder, "evaluation")
    resolve_models(_spec(asked, next(iter(configs.values())), out))  # before anything is trained
    own.check(*_MADE)
    for config in configs.values():  # of every row, before the first is trained
        check_stranger(config.run.folder)
        is_trained(config)
    own.claim(*_MADE)
    with begin("metrics") as progress:
        progress.show("metrics", Report(_not_measured(asked)))
    for row, config in configs.items():
        if not is_trained(config):
            with begin(f"training, {row.title}") as progress:
                resume = bool(complete_steps(RunFolder(config.run.folder).checkpoints))
                train(config, progress.show, resume=resume, replace=not resume, take_over=take_over)
    first = next(iter(configs.values()))
    with begin("evaluation") as progress:
        prompts = dataset_prompts(
            first.shards,
            out,
            asked.prompt_vlm,
            lambda status: progress.show("prompts", status),
            first.device,
            each_sample=True,
        )
        spec = _spec(asked, first, out)
        models = [
            EvaluatedModel(row.name, (RunFolder(config.run.folder).file(LORA_FILE),))
            for row, config in configs.items()
        ]
        results = evaluate(replace(spec, prompts=prompts, models=tuple(models)), progress.show)
    found = costs(asked, -(-len(prompts) // PROMPTS_EACH))
    used = {choice.name: choice.model or METRICS[choice.name] for choice in spec.metrics}
    text = page.markdown(list(configs), results, found, used, asked.adapter)
    own.write_all({PAGE: text.encode(), RESULTS: results.to_json().encode()})
    return text


def _not_measured(asked: PaperRun) -> list[str]:
    """A line for each metric whose weights are plainly not here: said before days of training."""
    lines = []
    for choice in asked.chosen_metrics():
        try:
            make_metric(choice.name, choice.model).check()
        except MissingWeights as error:
            lines.append(f"will not be measured: {error}")
    return lines


def is_trained(config: RunConfig) -> bool:
    """Raises ConfigError when the run was trained by other settings: results never mix."""
    run = RunFolder(config.run.folder)
    if run.exists or run.is_finished:
        refuse_other_settings(run, config)
    return run.is_finished and run.has(LORA_FILE)


def _spec(asked: PaperRun, config: RunConfig, out: str) -> EvaluateSpec:
    """Without prompts and models: the trained ones do not exist yet."""
    return EvaluateSpec(
        out=out,
        prompts=(),
        metrics=asked.chosen_metrics(),
        base=config.model.base,
        family=config.model.family,
        revision=config.model.revision,
        dtype=config.model.dtype,
        attention=config.model.attention,
        steps=(asked.steps,),
        seeds=tuple(range(asked.seeds)),
        device=config.device,
        workers=config.learner.workers,
        cpus=config.learner.cpus,
        gpus=1.0 if config.learner.gpus is None else config.learner.gpus,
    )
