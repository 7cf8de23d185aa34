"""A whole share of a step, as a learner comes to it: part by part."""

from __future__ import annotations

from dopsd.coordinator.coordinator import Coordinator
from dopsd.coordinator.messages import ObjectRefBox


def whole_share(
    coordinator: Coordinator, attempt: int, step: int, rank: int = 0, world: int = 1
) -> list[ObjectRefBox]:
    boxes, missing = [], 1
    while missing:
        share = coordinator.fetch(attempt, step, rank, world, len(boxes))
        boxes, missing = boxes + share.boxes, share.missing
    return boxes
