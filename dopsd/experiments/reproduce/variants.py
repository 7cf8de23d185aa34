"""What is compared: objectives and teachers under one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dopsd import __version__
from dopsd.config import RunConfig
from dopsd.experiments.shapes_base.save import HASH_FILE
from dopsd.files import storage
from dopsd.run_folder.files import LORA_FILE
from dopsd.shapes import weights_path
from dopsd.shapes.concepts import CONCEPTS


@dataclass(frozen=True)
class Variant:
    """A row of the table: a name for files, a title for people, the settings that differ."""

    name: str
    title: str
    method: dict[str, Any]
    rate: float = 1.0
    """Times the rates that are tried for every row."""
    length: int = 1
    """Times the steps of the budget."""
    on_adapter: bool = False
    """Trained with the seed's training adapter under it, drawn without."""


VARIANTS = (
    Variant("dopsd", "D-OPSD (EMA 0.9999)", {}),
    Variant("dopsd-ema09", "D-OPSD, EMA 0.9", {"ema_decay": 0.9}),
    Variant("dopsd-frozen", "D-OPSD, frozen teacher", {"teacher": "frozen"}),
    Variant("dopsd-live", "D-OPSD, live teacher", {"teacher": "live"}),
    Variant("sft", "SFT", {"objective": "sft"}),
    Variant(
        "off-policy-noised",
        "off-policy, noised targets",
        {"objective": "off_policy", "off_policy_states": "noised"},
    ),
    Variant(
        "off-policy-teacher",
        "off-policy, teacher's trajectory",
        {"objective": "off_policy", "off_policy_states": "teacher"},
    ),
    Variant("sft-on-teacher", "SFT on the teacher's samples", {"objective": "sft_on_teacher"}),
    Variant("sft-fifth", "SFT, a fifth of the rate", {"objective": "sft"}, rate=0.2),
    Variant("sft-on-adapter", "SFT on a training adapter", {"objective": "sft"}, on_adapter=True),
    Variant(
        "off-policy-teacher-long",
        "off-policy, teacher's trajectory, 4x the steps",
        {"objective": "off_policy", "off_policy_states": "teacher"},
        length=4,
    ),
)
ADAPTER = Variant("adapter", "training adapter", {"objective": "sft"})
"""No row: SFT at a low rate on the base's own pictures, which takes the distillation out of it.
Who tunes Z-Image-Turbo by SFT trains on top of such a one and leaves it away for drawing."""
ADAPTER_LR = 1e-4
NEEDS_ALL = next(variant for variant in VARIANTS if variant.name == "off-policy-noised")
"""Reads a teacher's contexts and the targets' latents: what is encoded for it serves every row."""
QUICK = ("dopsd", "sft", "off-policy-teacher")
"""The rows of the quick table."""
QUICK_STEPS = 100


@dataclass(frozen=True)
class Trial:
    """One training of the comparison."""

    variant: Variant
    concept: str
    seed: int
    lr: float
    """Peak rate."""

    @property
    def name(self) -> str:
        """Its folder and its name in the evaluation."""
        return f"{self.concept}-{self.variant.name}-s{self.seed}-lr{self.lr:g}"

    @property
    def adapter(self) -> Trial:
        """The training that its adapter comes from: one of each seed, for every concept, since it
        sees the base's own pictures alone."""
        return Trial(ADAPTER, next(iter(CONCEPTS)), self.seed, ADAPTER_LR)


@dataclass(frozen=True)
class Budget:
    """What every trial may spend: AdamW steps of ``batch`` samples with 4 states each."""

    steps: int
    batch: int
    rank: int
    images: int
    prior: int
    """Samples of the base that train beside the images: half of all draws, as many as those."""


CAPTIONS = "detailed"
"""All that is not the concept is said: the teacher sees the whole picture, and what no text says
could only be averaged."""
FULL = Budget(steps=200, batch=8, rank=16, images=16, prior=250)
RATES = (1e-4, 2.5e-4, 5e-4)
"""Tried for every row alike, on a seed that is in no table."""
QUICK_RATES = (5e-4,)
TUNING_SEED = 100


def trials(
    variants: Sequence[Variant],
    concepts: Sequence[str],
    seeds: Iterable[int],
    lr: Callable[[Variant, str], float],
) -> list[Trial]:
    """Every trial, in the order of training: whole comparisons first, seed by seed.

    ``lr``: the rate of a row on a concept.
    """
    return [
        Trial(variant, concept, seed, lr(variant, concept))
        for seed in seeds
        for concept in concepts
        for variant in variants
    ]


def run_of(trial: Trial, folder: str) -> str:
    """The run folder of a trial."""
    return storage.join(folder, "runs", trial.name)


def lora_of(trial: Trial, folder: str) -> str:
    """The file that a finished trial leaves."""
    return storage.join(run_of(trial, folder), LORA_FILE)


def prior_file(folder: str, seed: int) -> str:
    """Where the prompts of a seed's prior samples are."""
    return f"{folder}/prior-s{seed}.txt"


def _base_hash() -> str:
    return (weights_path() / HASH_FILE).read_text().strip()[:12]


def config_of(trial: Trial, budget: Budget, folder: str) -> RunConfig:
    """The run config of a trial: the learner rolls out itself, which is fastest on a laptop.

    ``folder``: of the whole comparison; the trials of a concept and seed share their shards.
    """
    variant = trial.variant
    model: dict[str, Any] = {"base": "shapes", "dtype": "float32"}
    if variant.on_adapter:
        model["merge"] = [lora_of(trial.adapter, folder)]
    # The adapter sees nothing but the base's own samples.
    alone = variant == ADAPTER
    return RunConfig.model_validate(
        {
            "run": {
                # With what it is trained on: a finished trial of another base is refused by it.
                "name": f"{trial.name} (base {_base_hash()}, dopsd {__version__})",
                "folder": run_of(trial, folder),
                "seed": trial.seed,
                "overwrite": True,
            },
            "model": model,
            "context": {"image_min_pixels": 16384, "image_max_pixels": 16384},
            "data": {
                "source": f"shapes:{trial.concept}",
                "shards": f"{folder}/shards/{trial.concept}-s{trial.seed}",
                "shapes_count": budget.images,
                "pixel_area": 1024,
                "bucket_multiple": 4,
                "caption_keys": [CAPTIONS],
                "concept_weights": {trial.concept: 0} if alone else {},
                "rows_per_group": 4,
                "groups_per_shard": 4,
                "prior": {
                    "prompts": prior_file(folder, trial.seed),
                    "count": budget.prior,
                    "steps": 4,
                    "weight": 1 if alone else budget.images / budget.prior,
                },
            },
            "method": {"steps": 4, **variant.method},
            "lora": {"rank": budget.rank, "alpha": 2 * budget.rank},
            "source": "fused",
            "device": "cpu",
            "encoder": {"cpus": 0.2},
            "learner": {
                "cpus": 0.4,
                "steps": budget.steps * variant.length,
                "global_batch": budget.batch,
                "micro_batch": budget.batch,
                "lr": trial.lr,
                "schedule": "cosine",
            },
            "preview": {"samples": 0},
            "preflight": {"mode": "off"},
        }
    )
