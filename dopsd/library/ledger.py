"""What happened to each concept, line by line, and what of it counts for the next start.

Lines are appended and never changed. Done is what has a card (folder.py); the ledger knows how
often a concept was tried, why it failed, and that it is parked. What was tried with other data or
another recipe counts no more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dopsd.library.scheduler import Assignment, Outcome, Tries
from dopsd.run_folder.jsonl import JsonLines, read_lines
from dopsd.run_folder.lines import is_count

START, BEGIN, SAVED, DONE, PARKED, RETRY = "start", "begin", "saved", "done", "parked", "retry"
_ENDS = {outcome.value for outcome in Outcome}
_OF_CONCEPTS = {BEGIN, SAVED, DONE, PARKED, RETRY} | _ENDS


@dataclass
class Story:
    """What the ledger tells of a concept under one fingerprint."""

    fingerprint: str = ""
    tries: Tries = field(default_factory=Tries)
    parked: str = ""
    done: bool = False
    worker: str = ""
    """That trains it, if the last line of it is a beginning."""
    step: int = 0
    """Where its last attempt began."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """[first, last) steps of the attempts that stand behind the adapter."""


class LibraryLedger:
    """Appends to the ledger of a library. ``notices``: what of it was damaged."""

    def __init__(self, path: str) -> None:
        self._lines = JsonLines(path, is_ledger_line)
        self.notices = self._lines.notices

    def start(self, planned: int, waiting: int) -> None:
        self._add(START, planned=planned, waiting=waiting)

    def begin(self, given: Assignment, fingerprint: str, step: int) -> None:
        self._add(
            BEGIN,
            concept=given.concept,
            print=fingerprint,
            worker=given.worker,
            attempt=given.attempt,
            step=step,
        )

    def saved(self, concept: str, fingerprint: str, step: int) -> None:
        self._add(SAVED, concept=concept, print=fingerprint, step=step)

    def done(self, concept: str, fingerprint: str, steps: int) -> None:
        self._add(DONE, concept=concept, print=fingerprint, step=steps)
        self._lines.flush()

    def end(self, concept: str, fingerprint: str, outcome: Outcome, reason: str) -> None:
        self._add(outcome.value, concept=concept, print=fingerprint, reason=reason)

    def park(self, concept: str, fingerprint: str, reason: str) -> None:
        self._add(PARKED, concept=concept, print=fingerprint, reason=reason)
        self._lines.flush()

    def retry(self, concept: str) -> None:
        """Forget how often a concept failed."""
        self._add(RETRY, concept=concept, print="")

    def flush(self) -> None:
        self._lines.flush()

    def _add(self, event: str, **values: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._lines.append({"event": event, "at": at, **values})


def read_ledger(path: str) -> list[dict[str, Any]]:
    """Its lines, those that are damaged left out."""
    return read_lines(path, is_ledger_line)


def fold(entries: Iterable[Mapping[str, Any]]) -> dict[str, Story]:
    """What counts, by concept."""
    stories: dict[str, Story] = {}
    for entry in entries:
        if entry["event"] == START:
            for story in stories.values():
                story.worker = ""  # whoever started before is no more
            continue
        story = stories.setdefault(entry["concept"], Story())
        if entry["event"] == RETRY:
            story.tries, story.parked = Tries(), ""
            continue
        if entry["print"] != story.fingerprint:
            story = stories[entry["concept"]] = Story(entry["print"])
        _take(story, entry)
    return stories


def _take(story: Story, entry: Mapping[str, Any]) -> None:
    event = entry["event"]
    if event == BEGIN:
        story.worker, story.step, story.done = entry["worker"], entry["step"], False
        kept = [(first, min(last, story.step)) for first, last in story.spans]
        story.spans = [span for span in kept if span[0] < span[1]]
    elif event in (SAVED, DONE):
        begun = story.spans[-1][1] if story.spans else 0
        if entry["step"] > begun:
            story.spans.append((begun, entry["step"]))
    story.done |= event == DONE
    if event in _ENDS | {DONE, PARKED}:
        story.worker = ""
    if event in _ENDS and event != Outcome.LOST.value:
        story.tries.failures += 1
        story.tries.deaths += event == Outcome.DIED.value
        story.tries.reason = entry["reason"]
    elif event == PARKED:
        story.parked = entry["reason"]


def is_ledger_line(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a line of a library's ledger."""
    event = entry["event"]
    if event == START:
        return is_count(entry["planned"]) and is_count(entry["waiting"])
    if event not in _OF_CONCEPTS:
        return False
    named = isinstance(entry["concept"], str) and isinstance(entry["print"], str)
    if event == BEGIN:
        known = isinstance(entry["worker"], str) and is_count(entry["attempt"], 1)
        return named and known and is_count(entry["step"])
    if event in (SAVED, DONE):
        return named and is_count(entry["step"])
    return named and (event == RETRY or isinstance(entry["reason"], str))
