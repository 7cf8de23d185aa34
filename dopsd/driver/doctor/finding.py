"""What a look at the machine found, as a line for people and as a record for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "do", "stop"]
"""``do``: a run goes, but slower or not for long; ``stop``: none does."""
_MARKS = {"ok": "ok", "do": "do", "stop": "STOP"}


@dataclass(frozen=True)
class Finding:
    name: str
    """Of what was looked at."""
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def stops(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "stop" for finding in findings)


def lines(findings: Sequence[Finding]) -> list[str]:
    """One for each."""
    wide = max((len(finding.name) for finding in findings), default=0)
    return [
        f"{_MARKS[each.level]:<4}  {each.name:<{wide}}  {each.found}"
        + (f"; {each.remedy}" if each.remedy else "")
        for each in findings
    ]


def record(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"ok": not stops(findings), "findings": [asdict(finding) for finding in findings]}
