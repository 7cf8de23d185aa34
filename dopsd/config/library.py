"""The section `library`: many concepts, an adapter of each (`dopsd library`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dopsd import shown
from dopsd.config.base import Fraction, NonNegative, Positive, Section, Whole

OVERRIDABLE = (
    "learner.lr",
    "learner.schedule",
    "learner.warmup_steps",
    "library.steps.max",
    "library.steps.min",
    "library.steps.per_image",
    "method.ema_decay",
    "method.weighting",
)
"""What a concept may have of its own: all else is of the worker, which stays."""


class LibraryStepsSection(Section):
    """Optimizer steps of a concept: `per_image` for each of its pictures, within bounds."""

    per_image: Annotated[float, Field(gt=0, le=1e6)] = Field(
        20.0, description="Optimizer steps for each picture of a concept."
    )
    min: Positive = Field(120, description="Fewest optimizer steps of a concept.")
    max: Positive = Field(600, description="Most optimizer steps of a concept.")

    @model_validator(mode="after")
    def _range(self) -> LibraryStepsSection:
        if self.min > self.max:
            raise ValueError(
                f"library.steps.min: {self.min}, allowed: at most library.steps.max ({self.max})"
            )
        return self

    def of(self, pictures: int) -> int:
        """Steps of a concept of so many pictures."""
        return max(self.min, min(self.max, round(self.per_image * pictures)))


class LibraryStopSection(Section):
    """When a concept's training ends early, by its own losses alone: the same after a resume."""

    every: NonNegative = Field(
        0, description="Look at the mean loss of every N optimizer steps; 0: train all steps."
    )
    patience: Positive = Field(
        2, description="Stop after so many looks in a row without a gain over the best."
    )
    min_gain: Fraction = Field(
        0.01, description="What counts as a gain: so much lower, as a fraction of the best."
    )


class LibrarySection(Section):
    """Many concepts, each trained as if alone into an adapter of its own (`dopsd library`)."""

    workers: Positive = Field(
        1,
        description="Processes that train, each with `learner.cpus` and `learner.gpus`, one "
        "concept at a time (`source: fused`) or `in_flight` of them. The library starts as soon as "
        "one finds room.",
    )
    in_flight: Literal["auto"] | Annotated[Whole, Field(ge=1, le=16)] = Field(
        "auto",
        description="With `source: disaggregated`: concepts that a worker, the learner of all of "
        "them, trains in turns, each strictly on-policy; while one learns, the others are rolled "
        "out and scored. `auto` has as many as keep it busy by the times of its steps, from 2 to "
        "8. It changes no adapter.",
    )
    min_images: Positive = Field(
        3, description="A concept with fewer pictures is skipped, with its reason."
    )
    steps: LibraryStepsSection = Field(default_factory=LibraryStepsSection)
    stop: LibraryStopSection = Field(default_factory=LibraryStopSection)
    retries: NonNegative = Field(
        2,
        description="Times that a concept which failed is tried again, the last time on a fresh "
        "worker; then it is parked with its reason. Two workers that die of it are enough.",
    )
    max_parked: Fraction = Field(
        0.05,
        description="Stop when more than this share of the concepts is parked, which is no bad "
        "concept but a bad recipe. Three may always be, unless this is 0.",
    )
    keep: list[Literal["lora", "teacher", "sheet"]] = Field(
        default_factory=lambda: ["lora", "sheet"],  # type: ignore[arg-type]
        description="Of each concept: the student's LoRA, the teacher's as well, and a contact "
        "sheet of `preview.samples` of its samples with its scores.",
    )
    overrides: dict[str, dict[str, float | int | str]] = Field(
        default_factory=dict,
        description="Keys of their own for concepts whose names match a pattern, the last match "
        "counts, e.g. {styles/*: {learner.lr: 5e-5}}. Allowed: "
        + ", ".join(f"`{key}`" for key in OVERRIDABLE)
        + ".",
    )

    @model_validator(mode="after")
    def _one_worker_for_all(self) -> LibrarySection:
        if "lora" not in self.keep or len(self.keep) > len(set(self.keep)):
            raise ValueError(
                f"library.keep: {self.keep}, allowed: lora, and beside it teacher, sheet or both"
            )
        for pattern, keys in self.overrides.items():
            for key in keys:
                if key in OVERRIDABLE:
                    continue
                where = f"library.overrides: {shown.value(key, quoted=False)} for "
                why = "the workers stay the same while concepts pass"
                if key.startswith("lora."):
                    why = "all adapters of a library have one rank and the same targets"
                raise ValueError(
                    f"{where}{shown.value(pattern)}, allowed: {', '.join(OVERRIDABLE)} ({why})"
                )
        return self
