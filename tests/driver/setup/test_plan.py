"""What training says and refuses by the plan."""

from __future__ import annotations

from typing import Any

import pytest

from dopsd import gpus
from dopsd.config import load_config
from dopsd.driver.setup.plan import check_plan
from dopsd.errors import ConfigError, ResourceError


def said(name: str, *overrides: str, alone: bool = True) -> list[str]:
    lines: list[str] = []

    def show(stage: str, what: Any) -> None:
        lines.extend(what.lines)

    check_plan(load_config(name, list(overrides)), show, alone)
    return lines


def test_a_run_on_cpus_is_told_its_memory_and_nothing_of_gpus() -> None:
    (line,) = said("shapes")
    assert line.startswith("Plan: GiB of tensors: ") and "h100" not in line


def test_off_says_nothing() -> None:
    assert said("shapes", "plan.mode=off") == []


def test_a_card_that_is_too_small_is_warned_of_or_refused() -> None:
    line, warning = said("z_image_turbo_lora", "plan.card=a100-40")
    assert "158.8 M trained of 6.15 B" in line and "bottleneck learner" in line
    assert warning.startswith("WARNING: plan: learner: 51.9 GiB, a100-40 holds 38.8 GiB")
    with pytest.raises(ResourceError, match=r"plan: learner: 51.9 GiB.*plan.mode: strict, allowed"):
        said("z_image_turbo_lora", "plan.card=a100-40", "plan.mode=strict")
    fits = ["plan.card=a100-40", "plan.mode=strict", "learner.gradient_checkpointing=true"]
    assert len(said("z_image_turbo_lora", *fits)) == 1


def test_the_gpus_of_this_machine_count_where_all_of_the_run_happens(monkeypatch) -> None:
    small = gpus.Gpu("Small", 24 * 2**30, "1"), gpus.Gpu("Large", 80 * 2**30, "1")
    monkeypatch.setattr(gpus, "installed", lambda: list(small))
    problems = said("z_image_turbo_lora", "plan.mode=warn")[1:]
    assert len(problems) == 2 and all("Small of this machine" in line for line in problems)
    assert len(said("z_image_turbo_lora", alone=False)) == 1


def test_an_unknown_card_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"plan.card: 'h1000', allowed: .*h100-80"):
        said("shapes", "plan.card=h1000")
