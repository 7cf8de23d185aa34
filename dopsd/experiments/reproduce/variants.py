"""What is compared: objectives and teachers under one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dopsd import __version__
from dopsd.config import RunConfig
from dopsd.experiments.shapes_base.save import HASH_FILE
from dopsd.shapes import weights_path
from dopsd.shapes.concepts import CONCEPTS


@dataclass(frozen=True)
class Variant:
    """A row of the table: a name for files, a title for people, the settings that differ."""

    name: str
    title: str
    method: dict[str, Any]


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
)
NEEDS_ALL = next(variant for variant in VARIANTS if variant.name == "off-policy-noised")
"""Reads a teacher's contexts and the targets' latents: what is encoded for it serves every row."""
QUICK = ("dopsd", "sft", "off-policy-teacher", "sft-on-teacher")
"""The rows of the quick table."""
QUICK_STEPS = 100


@dataclass(frozen=True)
class Trial:
    """One training of the comparison."""

    variant: Variant
    concept: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder and its name in the evaluation."""
        return f"{self.concept}-{self.variant.name}-s{self.seed}"


@dataclass(frozen=True)
class Budget:
    """What every trial may spend: AdamW steps of ``batch`` samples with 4 states each."""

    steps: int
    batch: int
    lr: float
    rank: int
    images: int
    prior: int
    """Samples of the base that train beside the images: half of all draws, as many as those."""


CAPTIONS = "detailed"
"""All that is not the concept is said: the teacher sees the whole picture, and what no text says
could only be averaged."""
FULL = Budget(steps=200, batch=8, lr=5e-4, rank=16, images=16, prior=250)


def trials(variants: tuple[Variant, ...], seeds: int, first: int = 0) -> list[Trial]:
    """Every trial of ``seeds`` seeds from ``first`` on, in the order of training: whole comparisons
    first, seed by seed."""
    return [
        Trial(variant, concept, seed)
        for seed in range(first, first + seeds)
        for concept in CONCEPTS
        for variant in variants
    ]


def prior_file(folder: str, seed: int) -> str:
    """Where the prompts of a seed's prior samples are."""
    return f"{folder}/prior-s{seed}.txt"


def _base_hash() -> str:
    return (weights_path() / HASH_FILE).read_text().strip()[:12]


def config_of(trial: Trial, budget: Budget, folder: str) -> RunConfig:
    """The run config of a trial: the learner rolls out itself, which is fastest on a laptop.

    ``folder``: of the whole comparison; the trials of a concept and seed share their shards.
    """
    return RunConfig.model_validate(
        {
            "run": {
                # With what it is trained on: a finished trial of another base is refused by it.
                "name": f"{trial.name} (base {_base_hash()}, dopsd {__version__})",
                "folder": f"{folder}/runs/{trial.name}",
                "seed": trial.seed,
                "overwrite": True,
            },
            "model": {"base": "shapes", "dtype": "float32"},
            "context": {"image_min_pixels": 16384, "image_max_pixels": 16384},
            "data": {
                "source": f"shapes:{trial.concept}",
                "shards": f"{folder}/shards/{trial.concept}-s{trial.seed}",
                "shapes_count": budget.images,
                "pixel_area": 1024,
                "bucket_multiple": 4,
                "caption_keys": [CAPTIONS],
                "rows_per_group": 4,
                "groups_per_shard": 4,
                "prior": {
                    "prompts": prior_file(folder, trial.seed),
                    "count": budget.prior,
                    "steps": 4,
                    "weight": budget.images / budget.prior,
                },
            },
            "method": {"steps": 4, **trial.variant.method},
            "lora": {"rank": budget.rank, "alpha": 2 * budget.rank},
            "source": "fused",
            "device": "cpu",
            "encoder": {"cpus": 0.2},
            "learner": {
                "cpus": 0.4,
                "steps": budget.steps,
                "global_batch": budget.batch,
                "micro_batch": budget.batch,
                "lr": budget.lr,
                "schedule": "cosine",
            },
            "preview": {"samples": 0},
            "preflight": {"mode": "off"},
        }
    )
