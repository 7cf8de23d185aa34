"""The law of `library.in_flight: auto` keeps a learner busy: a simulation over the flow itself."""

from __future__ import annotations

import heapq

import pytest

from dopsd.library.disaggregated.flow import Flow, Ticket
from dopsd.library.disaggregated.in_flight import concepts_per_learner

STEPS, CONCEPTS = 30, 20


def busy_share(in_flight: int, stages: tuple[float, float], rest: float, learner: float) -> float:
    """Of the time of one learner, beside one worker of each of two ``stages``; ``rest``: seconds
    from a step's end until its version is published. One concept begins when one ends."""
    flow, clock, events = Flow(2), 0.0, list[tuple[float, int, str, Ticket]]()
    busy: list[Ticket | None] = [None, None]
    steps: dict[int, int] = {}
    learning, ended, worked = False, 0, 0.0

    def publish(lane: int) -> None:
        flow.publish(lane, steps[lane], "version", ["block"])

    def begin() -> None:
        steps[lane := flow.open(f"concept {ended} {len(steps)}", 0, [1] * STEPS)] = 0
        publish(lane)

    for _ in range(in_flight):
        begin()
    while ended < CONCEPTS:
        for stage, seconds in enumerate(stages):
            if busy[stage] is None and flow.oldest(stage) is not None:
                busy[stage] = ticket = flow.take(stage).ticket
                heapq.heappush(events, (clock + seconds, stage, "served", ticket))
        ready = [lane for lane, step in steps.items() if flow.results(lane, step)]
        if ready and not learning:
            learning, lane = True, min(ready)
            heapq.heappush(events, (clock + learner, 0, "learned", Ticket(lane, 0, 0)))
            steps[lane] += 1
        clock, stage, kind, ticket = heapq.heappop(events)
        if kind == "served":
            busy[stage] = None
            flow.passed(ticket, "result")
        elif kind == "learned":
            learning, worked = False, worked + learner
            if steps[ticket.lane] < STEPS:
                heapq.heappush(events, (clock + rest, 0, "published", ticket))
                continue
            flow.close(ticket.lane)
            del steps[ticket.lane]
            ended += 1
            begin()
        else:
            publish(ticket.lane)
    return worked / clock


@pytest.mark.parametrize(
    ("stages", "rest", "learner"),
    [((12.0, 14.0), 2.0, 38.0), ((1.0, 1.0), 0.0, 1.0), ((3.0, 9.0), 1.0, 10.0)],
)
def test_as_many_as_the_law_says_keep_the_learner_busy_and_one_does_not(
    stages: tuple[float, float], rest: float, learner: float
) -> None:
    law = concepts_per_learner(sum(stages), rest, learner)
    alone = learner / (sum(stages) + rest + learner)
    assert busy_share(1, stages, rest, learner) == pytest.approx(alone, abs=0.02)
    assert busy_share(law, stages, rest, learner) > 0.97
    assert busy_share(law - 1, stages, rest, learner) < 0.97
