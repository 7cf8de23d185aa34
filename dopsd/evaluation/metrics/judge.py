"""A VLM judges whether the concept in a picture is the one in the target: the paper's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dopsd.evaluation.metrics.base import Column, Metric, MetricInput
from dopsd.evaluation.vlm import Vlm
from dopsd.models.pretrained import check_config

LABELS = {
    "judge_same": "same instance",
    "judge_mostly_same": "mostly same",
    "judge_partly_similar": "partly similar",
    "judge_different": "different instance",
}
_LETTERS = "ABCD"
_QUESTION = (
    "The first picture shows a reference subject. Is the main subject of the second picture the "
    "same one? Look at identity, shape, colours and details; pay no attention to background, pose "
    "and style. Answer with one letter.\n"
    + "\n".join(f"{letter}: {label}" for letter, label in zip(_LETTERS, LABELS.values()))
)


class Judge(Metric):
    """Share of pictures under each label, against the first target.

    The label is the likeliest of the four letters, so every picture has one.
    """

    name: ClassVar[str] = "judge"
    columns: ClassVar[dict[str, Column]] = {
        column: Column(
            f"the VLM judge says: {label}",
            higher_is_better=column in ("judge_same", "judge_mostly_same"),
            rate=True,
        )
        for column, label in LABELS.items()
    }
    default_model: ClassVar[str] = "Qwen/Qwen3-VL-4B-Instruct"
    vlm: Vlm | None = None

    def check(self) -> None:
        check_config(self.name, self.model)

    def load(self) -> None:
        self.vlm = Vlm(self.name, self.model, self.device)

    def measure(self, inputs: Sequence[MetricInput]) -> list[dict[str, float]]:
        assert self.vlm is not None
        values: list[dict[str, float]] = []
        for entry in inputs:
            if not entry.targets:
                values.append({})
                continue
            answer = self.vlm.choose([entry.targets[0], entry.image], _QUESTION, _LETTERS)
            values.append({column: float(index == answer) for index, column in enumerate(LABELS)})
        return values
